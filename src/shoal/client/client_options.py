"""What a caller may ask: of a connection, of a session and its route, of a reply.

Every keyword of `connect`, `generate`, `stream` and `chat`, and every flag of the client's commands, is a field here, of
`SamplingParams` or of `RouteOptions`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from shoal.client.activity import Activity
from shoal.engine.batch_queue import PREFILL_CHUNK_ROWS
from shoal.model.nn.sampling_params import SamplingParams
from shoal.options import Options, option, split
from shoal.protocol.messages import MAX_POSITION, RowCodec
from shoal.swarm.discovery.discovery_options import Discoveries
from shoal.swarm.membership.storage import PrivateSwarm
from shoal.swarm.routing.route_options import RouteOptions

ROUTE_WAIT_S = 10.0
"""How long a client waits by default for a route to exist."""

KEPT_REPLY_S = 300.0
"""For how long servers are asked by default to hold the session of a reply that is kept in a file."""

PATIENCE_S = 60.0
"""How long a session waits by default for servers of blocks that have none."""

MAX_KEEP_S = 86_400.0
MAX_FRAME_ROWS = 1024


class SessionOptions(Options, frozen=True, kw_only=True):
    """What a caller may ask of a session. `route` says which servers to use and to avoid."""

    max_tokens: Annotated[int, option("Tokens that the session may hold.", least=1, most=MAX_POSITION, shown=False)] = (
        4096
    )
    keep_s: Annotated[
        float,
        option("Seconds for which servers keep the session without its client.", above=0, most=MAX_KEEP_S, shown=False),
    ] = 30.0
    row_codec: Annotated[RowCodec, option("How hidden states travel; the servers offer what was proven.")] = "fp32"
    prefill_chunk_rows: Annotated[
        int,
        option(
            "Rows of one frame of a prompt, of which 64 at most are sent at once; small, so that all hops work at once.",
            least=1,
            most=MAX_FRAME_ROWS,
        ),
    ] = PREFILL_CHUNK_ROWS
    patience_s: Annotated[
        float, option("Seconds that a step waits while blocks have no server.", least=0, flag="--patience")
    ] = PATIENCE_S
    exact: Annotated[bool, option("Wait rather than go on with arithmetic that gives other bits.", flag="--exact")] = (
        False
    )
    redundancy: Annotated[int, option("2: servers stand by for every hop.", least=1, most=2)] = 1
    route: RouteOptions = RouteOptions()


def _tickets(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


class ConnectOptions(Options, frozen=True, kw_only=True):
    """How a swarm is joined, and how its model's ends are kept here.

    `invite`: an invite, or a PrivateSwarm by the name under which it is kept. `discoveries`: how to find members without a
    ticket.
    """

    peers: Annotated[
        tuple[str, ...],
        option("Ticket of a member; may be repeated.", "Swarm", parse=_tickets, repeated=True, envvar="SHOAL_PEERS"),
    ] = ()
    invite: Annotated[
        str | PrivateSwarm | None, option("An invite to a private swarm; needed once.", "Swarm", shown=False)
    ] = None
    transport: Annotated[str | None, option("Use only this transport: tls or iroh.", "Network")] = None
    discoveries: Annotated[Discoveries | None, option("How to find members.", "Swarm", shown=False)] = None
    fingerprint: Annotated[
        str | None,
        option("Of several models that the swarm serves, the one of this fingerprint.", "Model", shown=False),
    ] = None
    activity: Annotated[Activity | None, option("Says what is waited for now.", "Output", shown=False)] = None
    wait_s: Annotated[
        float, option("Seconds to wait for a first server of the model.", "Swarm", least=0, shown=False)
    ] = ROUTE_WAIT_S
    head: Annotated[
        Literal["float32", "bfloat16", "int8"],
        option("How embedding and head, which are computed here, are kept.", "Model"),
    ] = "float32"


def _path(given: str | os.PathLike[str]) -> Path:
    return Path(given)


class ReplyOptions(Options, frozen=True, kw_only=True):
    """How a reply is begun. `options` is what is asked of its session, but for what the reply itself sets."""

    raw: Annotated[bool, option("Continue the text; no chat template.", "Reply")] = True
    save: Annotated[
        Path | None,
        option("Keep the reply in this file as it grows; `shoal resume` goes on with it.", "Reply", parse=_path),
    ] = None
    keep_s: Annotated[
        float,
        option(
            "Seconds for which servers are asked to hold a saved reply's session.",
            "Reply",
            above=0,
            most=MAX_KEEP_S,
            flag="--keep",
        ),
    ] = KEPT_REPLY_S
    wait_s: Annotated[float, option("Seconds to wait for a route.", "Reply", least=0, shown=False)] = ROUTE_WAIT_S
    options: Annotated[SessionOptions | None, option("What is asked of the session.", "Session", shown=False)] = None


def connect_options(given: Mapping[str, Any]) -> tuple[ConnectOptions, SessionOptions]:
    """Keywords of `connect`: those of the connection, and what all its sessions are asked for. Raises UsageError."""
    own, session, route = split(given, ConnectOptions, SessionOptions, RouteOptions)
    return ConnectOptions.of(own), session_options(SessionOptions(), session, route)


def reply_options(
    given: Mapping[str, Any], base: SessionOptions
) -> tuple[ReplyOptions, SamplingParams, SessionOptions]:
    """Keywords of a reply: its own, those of sampling, and those of the session, beside what `base` says. Raises UsageError."""
    own, sampling, session, route = split(given, ReplyOptions, SamplingParams, SessionOptions, RouteOptions)
    reply = ReplyOptions.of(own)
    return reply, SamplingParams.of(sampling), session_options(reply.options or base, session, route)


def session_options(base: SessionOptions, session: Mapping[str, Any], route: Mapping[str, Any]) -> SessionOptions:
    """`base` with changes to itself and to its route. Raises UsageError."""
    return msgspec.structs.replace(base.changed(session), route=base.route.changed(route))
