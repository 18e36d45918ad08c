"""`shoal status`: who serves what."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from shoal.cli.connecting import ModelSource
from shoal.cli.discovery_flags import Yes, client_discoveries
from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, Invite, SwarmName, interruptible, print_json
from shoal.cli.terminal import say, say_table, styled, waits_for
from shoal.cli.which_swarm import chosen_swarm
from shoal.client.client_options import ConnectOptions
from shoal.protocol.messages import AccountLoad
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.types import Span, missing_spans

if TYPE_CHECKING:
    from rich.text import Text

    from shoal.client.client import AsyncClient, ServerStatus
    from shoal.swarm.directory.records import ServerRecord


COLUMNS = ("server", "blocks", "bits", "nats", "sessions", "queue", "tokens", "rows/s", "done", "state")
NAME_CHARACTERS = 14
"""Of a server's name in the table, which has to fit into 80 columns."""

State = Literal["up", "leaving", "left", "silent"]


MAX_PROBLEMS = 8
"""Reasons why records were dropped that people see; JSON has all that are kept."""


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
    journal_bytes: int
    max_journal_bytes: int
    dials: int
    max_dials: int
    your_queued_rows: int
    your_journal_bytes: int
    your_dials: int
    share_dials: int
    greediest: tuple[AccountLoad, ...]


class ServerView(msgspec.Struct, frozen=True):
    """A server as its record and its answer describe it; `load` is None when none came, and `problem` says why.

    `heard_s`: seconds since it last said something to anybody, by its own clock. `bits_per_weight`, and `kl_nats` from the
    base, are the server's word; None: it does not say.
    """

    peer: str
    name: str
    span: tuple[int, int]
    addresses: tuple[str, ...]
    load: LoadView | None
    problem: str
    state: State
    heard_s: float
    bits_per_weight: float | None
    kl_nats: float | None


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
    chosen = chosen_swarm(connection.peers, swarm, invite, found is not None)
    client = AsyncClient(chosen.peers, invite=chosen.private, only=connection.transport, discoveries=found)
    waits_for(lambda: str(client.activity) or "starting")
    interruptible()
    servers, problems = asyncio.run(_ask(client))
    models = model_views(servers)
    if as_json:
        print_json({"models": models, "problems": problems})
        return
    if not models:
        say("no server is known: the members that answered serve nothing")
    for view in models:
        _show(view)
    for problem in problems[-MAX_PROBLEMS:]:
        say(f"a record was dropped: {problem}")


async def _ask(client: AsyncClient) -> tuple[list[ServerStatus], tuple[str, ...]]:
    async with client:
        return await client.status(), client.problems


def model_views(servers: Sequence[ServerStatus]) -> list[ModelView]:
    """What is shown, by model. A server that says that a model has another shape than others say is shown apart from them."""
    by_model: dict[tuple[str, int, int], list[ServerStatus]] = defaultdict(list)
    for server in sorted(servers, key=lambda one: (one.record.model.name, one.record.span)):
        by_model[server.record.model.checkpoint].append(server)
    return [_model_view(group) for group in by_model.values()]


def _model_view(servers: list[ServerStatus]) -> ModelView:
    model = min(servers, key=lambda one: one.status is None).record.model  # a name is what a server calls it
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
    heard_s = 0.0 if load is not None else max(0.0, time.time() - record.issued_at)
    return ServerView(
        record.peer,
        record.name,
        span,
        tuple(record.addresses),
        load,
        server.problem,
        _state(server),
        heard_s,
        record.bits_per_weight or None,
        record.kl_nats,
    )


def _state(server: ServerStatus) -> State:
    """A server that said it would leave and does not answer has left in good order."""
    if server.status is not None:
        return "leaving" if server.record.draining else "up"
    return "left" if server.record.draining else "silent"


def _show(model: ModelView) -> None:
    say(styled(model.name, "bold"), f" · {model.num_blocks} blocks · {model.fingerprint[:8]}")
    say_table(COLUMNS, [_row(server) for server in model.servers])
    for server in model.servers:
        if server.state == "silent":
            say(f"{server.name or server.peer[:8]} was heard {_duration(server.heard_s)} ago: {server.problem}")
        if server.load is not None and server.load.clients > 1:
            for line in _shares(server.load):
                say(f"{server.name or server.peer[:8]}: {line}")
    if any(server.bits_per_weight is not None or server.kl_nats is not None for server in model.servers):
        say("bits per weight and nats from the base (KL) are the servers' own words")
    if model.missing:
        say(styled(f"missing blocks: {', '.join(str(Span(*span)) for span in model.missing)}", "red"))
    else:
        say("all blocks are served")


def _row(server: ServerView) -> tuple[str | Text, ...]:
    """A server in the table; one that does not answer has no load."""
    name, span, load = server.name or server.peer[:8], str(Span(*server.span)), server.load
    shown = name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"
    bits = "-" if server.bits_per_weight is None else f"{server.bits_per_weight:.3g}"
    if load is None:
        state = "left" if server.state == "left" else styled(f"silent {_duration(server.heard_s)}", "red")
        return (shown, span, bits, _nats(server.kl_nats), "", "", "", "", "", state)
    rate = _short(load.decode_rows_per_s) if load.decode_rows_per_s else "-"
    up = _duration(load.uptime_s)
    return (
        shown,
        span,
        bits,
        _nats(server.kl_nats),
        f"{load.sessions}/{load.max_sessions}",
        _short(load.queued_rows),
        _short(load.free_tokens),
        rate,
        _short(load.rows_computed),
        "leaving" if server.state == "leaving" else f"up {up}",
    )


def _nats(told: float | None) -> str:
    """In five characters, three of them behind the point: what is less is as good as nothing."""
    if told is None:
        return "-"
    if told == 0:
        return "0"
    return f"{told:.3f}" if 0.001 <= told < 10 else "<.001" if told < 0.001 else f"{told:.1f}"


def _short(number: float) -> str:
    """Three digits and a unit: 999, 30.0k, 1.05M."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:  # what rounds to it
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _shares(load: LoadView) -> Iterator[str]:
    """How clients share a server: what this one has and what an equal share is; what the greediest one has."""
    has = f"yours has {load.your_sessions} of {load.sessions} sessions"
    yield f"{load.clients} clients; {has}, an equal share is {load.share_sessions:.1f} of {load.max_sessions}"
    for most in load.greediest[:1]:
        cache, queued = _short(most.tokens), _short(most.queued_rows)
        yield f"the greediest has {most.sessions} sessions, {cache} tokens, {queued} rows queued"


def _duration(seconds: float) -> str:
    """Seconds as the two largest units."""
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
