"""`shoal status`: who serves what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from shoal.cli.connecting import ModelSource
from shoal.cli.discovery_flags import Yes, client_discoveries
from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, Invite, SwarmName, console, print_json, private
from shoal.client.client_options import ConnectOptions
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.types import Span, missing_spans

if TYPE_CHECKING:
    from shoal.client.client import AsyncClient, ServerStatus


@with_option_flags("dht_port", "hello_port", "head")
def status(
    connection: ConnectOptions = ConnectOptions(),
    discovery: DiscoveryOptions = DiscoveryOptions(),
    *,
    model: ModelSource = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """List the servers of a swarm, their blocks and load, and the blocks that are missing."""
    from shoal.client.client import AsyncClient

    found = client_discoveries(model, discovery, yes)
    joined = private(swarm, invite)
    servers = asyncio.run(
        _ask(AsyncClient(connection.peers, invite=joined, only=connection.transport, discoveries=found))
    )
    models = _by_model(servers)
    if as_json:
        print_json({"models": models})
        return
    for entry in models:
        _show(entry)


async def _ask(client: AsyncClient) -> list[ServerStatus]:
    async with client:
        return await client.status()


def _by_model(servers: list[ServerStatus]) -> list[dict[str, Any]]:
    models: dict[str, dict[str, Any]] = {}
    for server in sorted(servers, key=lambda one: (one.record.model.name, one.record.span)):
        record = server.record
        entry = models.setdefault(
            record.model.fingerprint,
            {
                "name": record.model.name,
                "fingerprint": record.model.fingerprint,
                "num_blocks": record.model.num_blocks,
                "servers": [],
            },
        )
        entry["servers"].append(
            {
                "peer": record.peer,
                "name": record.name,
                "span": [record.span.start, record.span.stop],
                "addresses": list(record.addresses),
                "load": server.status,
                "problem": server.problem,
            }
        )
    for entry in models.values():
        live = [Span(*server["span"]) for server in entry["servers"] if server["load"] is not None]
        missing = missing_spans(Span(0, entry["num_blocks"]), live)
        entry["missing"] = [[span.start, span.stop] for span in missing]
    return list(models.values())


def _show(model: dict[str, Any]) -> None:
    from rich.table import Table

    console.print(f"[bold]{model['name']}[/] · {model['num_blocks']} blocks · {model['fingerprint'][:8]}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("server", "blocks", "sessions", "rows waiting", "tokens free", "rows/s"):
        table.add_column(title, justify="left" if title == "server" else "right")
    for server in model["servers"]:
        name, span = server["name"] or server["peer"][:8], Span(*server["span"])
        load = server["load"]
        if load is None:
            table.add_row(name, str(span), f"[red]{server['problem']}[/]", "", "", "")
            continue
        sessions = f"{load.sessions}/{load.max_sessions}"
        rate = f"{load.decode_rows_per_s:.0f}" if load.decode_rows_per_s else "-"
        table.add_row(name, str(span), sessions, f"{load.queued_rows}", f"{load.free_tokens:,}", rate)
    console.print(table)
    if model["missing"]:
        console.print(f"[red]missing blocks: {', '.join(str(Span(*span)) for span in model['missing'])}[/]")
    else:
        console.print("all blocks are served")
