"""`shoal swarm`: a private swarm's owner at work."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.option_flags import with_debug
from shoal.cli.output import AsJson, Transport, interruptible, print_json
from shoal.cli.terminal import say, waits_for, write

if TYPE_CHECKING:
    from shoal.swarm.membership.owner import Owner

Name = Annotated[str, typer.Argument(help="The swarm's name on this machine.")]
Expires = Annotated[str, typer.Option(help="How long it is good for: 30m, 12h, 7d.")]

UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0}


def make_app() -> typer.Typer:
    """The commands of `shoal swarm`."""
    app = typer.Typer(help="Make a private swarm, invite to it, revoke.", no_args_is_help=True)
    for command in (create, invite, delegate, revoke, show):
        app.command(command.__name__)(with_debug(command))
    return app


def create(name: Name, as_json: AsJson = False) -> None:
    """Make a private swarm: its owner's key, on this machine."""
    from shoal.swarm.membership.storage import SwarmFolder

    folder = SwarmFolder(name)
    key = folder.create_owner()
    if as_json:
        print_json({"name": name, "swarm": key.peer, "folder": str(folder.path)})
        return
    say(f"swarm    {key.peer}")
    say(f"key      {folder.path / 'owner.key'}  (its holder owns the swarm: keep a copy)")
    say("next     start its first server, on an address that others reach:")
    say(f"           shoal serve MODEL --swarm {name} --listen HOST:PORT")
    say("         then let others in, one invite for each server or client:")
    say(f"           shoal swarm invite {name} --expires 7d")


def invite(
    name: Name,
    expires: Expires = "7d",
    redeemer: Annotated[
        str | None, typer.Option(help="Ticket of the delegate that shall redeem it; default: the owner's server.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print one invite: it lets one node in, once. Send it like a password."""
    from shoal.swarm.discovery.ticket import Ticket
    from shoal.swarm.membership.credentials import parse_invite

    text = _owner(name).invite(_seconds(expires), Ticket.parse(redeemer) if redeemer is not None else None)
    made = parse_invite(text)[0]
    if as_json:
        print_json({"invite": text, "id": made.id.hex(), "expires_at": made.expires_at, "redeemer": made.redeemer})
        return
    say(f"invite {made.id.hex()}, until {_date(made.expires_at)}, for one node")
    write(text + "\n")


def delegate(
    name: Name,
    node: Annotated[str, typer.Argument(help="The server's node id or ticket.")],
    expires: Expires = "30d",
    as_json: AsJson = False,
) -> None:
    """Print a delegation: with it (shoal serve --delegation) a server redeems invites that name it, and renews."""
    text = _owner(name).delegate(node, _seconds(expires))
    if as_json:
        print_json({"delegation": text})
    else:
        write(text + "\n")


def revoke(
    name: Name,
    what: Annotated[str, typer.Argument(help="Node id or invite id, whole or its beginning.")],
    peers: Annotated[
        list[str] | None, typer.Option(help="Tell this member now; a running server of the owner does so anyway.")
    ] = None,
    transport: Transport = None,
    as_json: AsJson = False,
) -> None:
    """Put a node out of the swarm, or an invite and the node that used it."""
    revocations = _owner(name).revoke(what)
    if peers:
        waits_for("telling members")
        interruptible()
        asyncio.run(_tell(name, peers, transport))
    if as_json:
        print_json(
            {
                "number": revocations.number,
                "nodes": sorted(revocations.nodes),
                "invites": sorted(invite.hex() for invite in revocations.invites),
            }
        )
        return
    say(f"list {revocations.number}; out: nodes {len(revocations.nodes)}, invites {len(revocations.invites)}")
    if not peers:
        say(f"a running server of the owner (--swarm {name}) spreads it; else give --peers")


async def _tell(name: str, peers: list[str], transport: str | None) -> None:
    from shoal.client.client import AsyncClient
    from shoal.swarm.membership.storage import PrivateSwarm

    async with AsyncClient(peers, invite=PrivateSwarm(name=name), only=transport) as client:
        await client.refresh()  # the first time a member is met, this side learns that it lacks the list


def show(name: Name, as_json: AsJson = False) -> None:
    """Say what is known of a private swarm on this machine."""
    from shoal.swarm.membership.storage import SwarmFolder

    folder = SwarmFolder(name)
    if folder.owner() is None:
        _show_member(name, as_json)
        return
    owner = _owner(name)
    issued, revocations = owner.issued(), owner.revocations()
    if as_json:
        print_json(
            {
                "swarm": owner.key.peer,
                "owner": True,
                "invites": [
                    {"id": one.invite.id.hex(), "expires_at": one.invite.expires_at, "node": one.node} for one in issued
                ],
                "number": revocations.number,
                "revoked_nodes": sorted(revocations.nodes),
                "revoked_invites": sorted(invite.hex() for invite in revocations.invites),
            }
        )
        return
    say(f"swarm    {owner.key.peer} (owned here)")
    for one in issued:
        out = one.invite.id in revocations.invites or one.node in revocations.nodes
        state = "revoked" if out else "used" if one.node else _until(one.invite.expires_at)
        say(f"invite   {one.invite.id.hex()}  {state}  {one.node or ''}")
    for node in sorted(revocations.nodes):
        say(f"out      {node}")
    say(f"list     {revocations.number}")


def _show_member(name: str, as_json: bool) -> None:
    from shoal.errors import NotAMember, UsageError
    from shoal.swarm.membership.credentials import verify_certificate
    from shoal.swarm.membership.storage import Role, SwarmFolder

    folder, found = SwarmFolder(name), []
    roles: tuple[Role, ...] = ("server", "client")
    for role in roles:
        kept = folder.node(role).kept()
        if kept is not None:
            try:
                certificate = verify_certificate(kept.certificate, kept.swarm, time.time(), late_s=float("inf"))
            except NotAMember as error:
                raise UsageError(f"the membership in {folder.node(role).path} does not hold: {error}") from error
            found.append({"role": role, "swarm": kept.swarm, "node": certificate.peer, "until": certificate.expires_at})
    if not found:
        raise UsageError(f"there is no private swarm {name!r} here")
    if as_json:
        print_json({"owner": False, "nodes": found})
        return
    for one in found:
        say(f"swarm    {one['swarm']}")
        say(f"{one['role']:8} {one['node']}, certificate {_until(float(str(one['until'])))}")


def _owner(name: str) -> Owner:
    from shoal.clock import SYSTEM_CLOCK
    from shoal.swarm.membership.owner import Owner
    from shoal.swarm.membership.storage import SwarmFolder

    return Owner(SwarmFolder(name), SYSTEM_CLOCK)


def _seconds(text: str) -> float:
    number, unit = text.strip()[:-1], text.strip()[-1:]
    if unit not in UNITS_S or not number.isdecimal() or not 0 < int(number) <= 36_500:
        raise typer.BadParameter(f"{text!r} is not a time like 30m, 12h or 7d")
    return int(number) * UNITS_S[unit]


def _until(expires_at: float) -> str:
    return f"{'until' if expires_at > time.time() else 'expired'} {_date(expires_at)}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
