"""What a client asks of a route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from shoal.errors import UsageError
from shoal.options import Options, option
from shoal.types import PeerId, Span


def _peers(texts: str | Sequence[str]) -> frozenset[str]:
    return frozenset([texts] if isinstance(texts, str) else texts)


def _pins(texts: Sequence[str]) -> dict[int | Span, PeerId]:
    """`BLOCK=NODE` or `START:STOP=NODE` for each; raises UsageError."""
    pins: dict[int | Span, PeerId] = {}
    for text in texts:
        where, _, peer = text.partition("=")
        if not peer or not (":" in where or where.isdecimal()):
            raise UsageError("it is BLOCK=NODE or START:STOP=NODE")
        pins[Span.parse(where) if ":" in where else int(where)] = PeerId(peer)
    return pins


class RouteOptions(Options, frozen=True, kw_only=True):
    """What a client asks of a route.

    `pins` name who computes a block or span. Servers in `deny`, or not in `allow`, below `min_bits`, beyond `max_kl`, or of
    other `numerics` are left out. A session sets the last four itself: `same_bits`, near which a server's bits per weight have
    to be, finds servers of equal weights; `num_tokens` must fit into the free caches; `broken_links` are pairs
    (from, to) of servers, or CLIENT, where the first does not reach the second.
    """

    goal: Annotated[
        Literal["latency", "throughput"],
        option(
            "Take the route with the least time for a token (latency), or the most rows in bulk (throughput).", "Route"
        ),
    ] = "latency"
    pins: Annotated[
        Mapping[int | Span, PeerId],
        option(
            "Have a node compute a block or a span: BLOCK=NODE or START:STOP=NODE.",
            "Route",
            flag="--pin",
            parse=_pins,
            repeated=True,
        ),
    ] = msgspec.field(default_factory=dict)
    deny: Annotated[
        frozenset[str],
        option("Never use the server with this node id; may be repeated.", "Route", parse=_peers, repeated=True),
    ] = frozenset()
    allow: Annotated[
        frozenset[str] | None,
        option("Use only servers with these node ids; may be repeated.", "Route", parse=_peers, repeated=True),
    ] = None
    min_bits: Annotated[
        float,
        option(
            "Leave out servers whose weights have fewer bits on average, or unknown ones.", "Route", least=0, most=32
        ),
    ] = 0.0
    max_kl: Annotated[
        float | None,
        option(
            "Leave out servers that say that their model is further from the base (KL divergence, nats), or do not say.",
            "Route",
            least=0,
        ),
    ] = None
    num_tokens: Annotated[int, option("Tokens that must fit into the free caches.", "Route", least=0, shown=False)] = 0
    numerics: Annotated[str | None, option("Arithmetic that servers must have.", "Route", shown=False)] = None
    same_bits: Annotated[
        float | None, option("Bits per weight that servers must have, nearly.", "Route", least=0, shown=False)
    ] = None
    broken_links: Annotated[
        frozenset[tuple[str, str]], option("Pairs of servers that do not reach each other.", "Route", shown=False)
    ] = frozenset()
