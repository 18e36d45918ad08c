"""`shoal status`: who serves what."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from shoal.cli.connecting import ModelSource
from shoal.cli.discovery_flags import Yes, client_discoveries
from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, Invite, SwarmName, console, print_json, private
from shoal.client.client_options import ConnectOptions
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.types import Span, missing_spans

if TYPE_CHECKING:
    from shoal.client.client import AsyncClient, ServerStatus
    from shoal.swarm.directory.records import ServerRecord


class LoadView(msgspec.Struct, frozen=True):
    """A server's answer, with every field; see `protocol.messages.Status`."""

    sessions: int
    max_sessions: int
    queued_rows: int
    free_tokens: int
    total_tokens: int
    decode_rows_per_s: float
    prefill_rows_per_s: float
    uptime_s: float
    max_batch_sessions: int
    exact: bool
    prefix_rows: int
    rows_computed: int
    sessions_opened: int
    moves: int
    clients: int
    displaced: int
    your_sessions: int
    your_tokens: int
    share_sessions: float
    share_tokens: int


class ServerView(msgspec.Struct, frozen=True):
    """A server as its record and its answer describe it; `load` is None when none came, and `problem` says why."""

    peer: str
    name: str
    span: tuple[int, int]
    addresses: tuple[str, ...]
    load: LoadView | None
    problem: str


class ModelView(msgspec.Struct, frozen=True):
    """A model of the swarm, its servers in the order of their blocks, and the spans that no live server holds."""

    name: str
    fingerprint: str
    num_blocks: int
    servers: tuple[ServerView, ...]
    missing: tuple[tuple[int, int], ...]


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
    models = model_views(servers)
    if as_json:
        print_json({"models": models})
        return
    for view in models:
        _show(view)


async def _ask(client: AsyncClient) -> list[ServerStatus]:
    async with client:
        return await client.status()


def model_views(servers: Sequence[ServerStatus]) -> list[ModelView]:
    """What is shown, by model."""
    by_model: dict[str, list[ServerStatus]] = defaultdict(list)
    for server in sorted(servers, key=lambda one: (one.record.model.name, one.record.span)):
        by_model[server.record.model.fingerprint].append(server)
    return [_model_view(group) for group in by_model.values()]


def _model_view(servers: list[ServerStatus]) -> ModelView:
    model = servers[0].record.model
    live = [server.record.span for server in servers if server.status is not None]
    missing = missing_spans(Span(0, model.num_blocks), live)
    return ModelView(
        model.name,
        model.fingerprint,
        model.num_blocks,
        tuple(_server_view(server, server.record) for server in servers),
        tuple((span.start, span.stop) for span in missing),
    )


def _server_view(server: ServerStatus, record: ServerRecord) -> ServerView:
    answer = server.status
    load = None if answer is None else LoadView(*(getattr(answer, name) for name in LoadView.__struct_fields__))
    span = record.span.start, record.span.stop
    return ServerView(record.peer, record.name, span, tuple(record.addresses), load, server.problem)


def _show(model: ModelView) -> None:
    from rich.table import Table

    console.print(f"[bold]{model.name}[/] · {model.num_blocks} blocks · {model.fingerprint[:8]}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("server", "blocks", "sessions", "rows waiting", "tokens free", "rows/s", "rows computed", "up"):
        table.add_column(title, justify="left" if title == "server" else "right")
    for server in model.servers:
        name, span, load = server.name or server.peer[:8], str(Span(*server.span)), server.load
        if load is None:
            table.add_row(name, span, f"[red]{server.problem}[/]")
            continue
        sessions = f"{load.sessions}/{load.max_sessions}"
        rate = f"{load.decode_rows_per_s:.0f}" if load.decode_rows_per_s else "-"
        row = (
            f"{load.queued_rows}",
            f"{load.free_tokens:,}",
            rate,
            f"{load.rows_computed:,}",
            _duration(load.uptime_s),
        )
        table.add_row(name, span, sessions, *row)
    console.print(table)
    for server in model.servers:
        if server.load is not None and server.load.clients > 1:
            console.print(f"{server.name or server.peer[:8]}: {_share(server.load)}", markup=False, soft_wrap=True)
    if model.missing:
        console.print(f"[red]missing blocks: {', '.join(str(Span(*span)) for span in model.missing)}[/]")
    else:
        console.print("all blocks are served")


def _share(load: LoadView) -> str:
    """How clients share a server: what this one has, and what an equal share is."""
    has = f"yours has {load.your_sessions} of {load.sessions} sessions"
    return f"{load.clients} clients; {has}, an equal share is {load.share_sessions:.1f} of {load.max_sessions}"


def _duration(seconds: float) -> str:
    """Seconds as the two largest units."""
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
