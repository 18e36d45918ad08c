"""Options by which commands find a swarm without a ticket, and what is said before anything public is contacted."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shoal.cli.terminal import say, waiting
from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
from shoal.swarm.discovery.libtorrent_session import PUBLIC_BOOTSTRAP

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before joining a public swarm.")]


def client_discoveries(model: str | None, options: DiscoveryOptions, yes: bool) -> Discoveries | None:
    """The discoveries of a client command, after the user agreed; None when none were asked for.

    `model` gives the fingerprint, where it lies on this machine or on the hub. Raises UsageError when a public swarm
    has neither a name nor a model, typer.Abort when the user does not agree.
    """
    if not options.wanted:
        return None
    agree(options, yes, serving=False)
    discoveries = Discoveries(options, _fingerprint(model) if model is not None else None)
    for notice in discoveries.notices:
        say(notice)
    return discoveries


def _fingerprint(model: str) -> str:
    from shoal.model.weights.checkpoint import fingerprint
    from shoal.model.weights.model_source import open_checkpoint

    return fingerprint(open_checkpoint(model))


def agree(options: DiscoveryOptions, yes: bool, *, serving: bool) -> None:
    """Say what becomes visible to whom; on a terminal ask, unless `yes`. Raises typer.Abort."""
    if not options.contacts_strangers:
        return
    for line in disclosure(options, serving=serving):
        say(line)
    if not yes and sys.stdin.isatty():
        with waiting.silent():
            typer.confirm("Go on?", abort=True, err=True)


def disclosure(options: DiscoveryOptions, *, serving: bool) -> list[str]:
    """What public mode does, in plain words."""
    relay = options.iroh_relay
    lines = [
        "--public contacts hosts that others run:",
        f"- the BitTorrent DHT, entered through {PUBLIC_BOOTSTRAP}. Its nodes, and those who watch them, see your IP "
        "address and which swarm you look for.",
    ]
    if serving:
        lines += [
            "- your router, by UPnP and NAT-PMP: it is asked to open the ports of this server.",
            "- The DHT announces your IP address and a port under the swarm's name; anybody who asks that port gets this "
            "server's record: node id, addresses (those in your own network too), model, blocks, load, name, version.",
            "- Anybody may then connect and have this server compute.",
        ]
    else:
        lines.append("- members found there: they see your IP address and what you send through them.")
    if relay is not None:
        lines.append(
            f"- iroh relays ({relay}): they see your IP address, node id and whom you talk to, not what is said."
        )
    return lines
