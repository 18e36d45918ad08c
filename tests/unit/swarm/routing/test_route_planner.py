"""What routes are planned for, by example; tests/property/test_routing.py compares them with all there are."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import FingerprintMismatch, NoRoute
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.hop_costs import CLIENT
from shoal.swarm.routing.route_options import RouteOptions
from shoal.swarm.routing.route_planner import estimate_route, plan_route, same_model
from shoal.types import Hop, ModelSpec, PeerId, Span

ALL = Span(0, 8)
A, B, C, D = (PeerId(letter * 64) for letter in "abcd")


def server(peer: PeerId, start: int, stop: int, **changes: object) -> ServerRecord:
    """A server that makes 100 rows/s through its span, with changes."""
    fields: dict[str, object] = {
        "peer": peer,
        "sequence": 1,
        "issued_at": 0.0,
        "expires_at": 300.0,
        "addresses": (),
        "model": ModelSpec("tiny", "f" * 32, 8, 48),
        "span": Span(start, stop),
        "decode_rows_per_s": 100.0,
        "prefill_rows_per_s": 1000.0,
        "free_tokens": 1000,
        **changes,
    }
    return ServerRecord(**fields)  # type: ignore[arg-type]


def peers(*servers: ServerRecord, **options: object) -> str:
    """The planned route as letters, one for each hop."""
    return "".join(hop.peer[0] for hop in plan_route(ALL, servers, RouteOptions(**options)))  # type: ignore[arg-type]


def test_near_and_fast_servers_win() -> None:
    """What counts is the whole token: links, queues and blocks together."""
    near, fast = server(A, 0, 8), server(B, 0, 8, decode_rows_per_s=200.0)
    assert peers(near, fast) == "b"
    assert plan_route(ALL, [near, fast], measured={A: 0.01, B: 0.05})[0].peer == A
    assert peers(near, server(B, 0, 8, decode_rows_per_s=200.0, queued_rows=20)) == "a"
    chain = [server(A, 0, 4), server(B, 4, 8), server(C, 4, 8)]
    assert plan_route(ALL, chain, measured={A: 0.1, B: 0.1, C: 0.2})[1].peer == B
    told = server(A, 0, 4, round_trips=((C, 0.001),))
    assert plan_route(ALL, [told, *chain[1:]], measured={A: 0.1, B: 0.1, C: 0.11})[1].peer == C


def test_bulk_work_spreads() -> None:
    """For throughput each server gets the part that it can keep up with."""
    slow, fast = server(A, 0, 8, prefill_rows_per_s=100.0), server(B, 0, 8, prefill_rows_per_s=300.0)
    route = plan_route(ALL, [slow, fast], RouteOptions(goal="throughput"))
    assert sorted(len(hop.span) for hop in route if hop.peer == B) == [6]
    assert estimate_route(route, [slow, fast]).rows_per_s == 400.0


def test_one_server_may_serve_two_parts() -> None:
    """A pin in the middle of a span comes back to the same server."""
    route = plan_route(ALL, [server(A, 0, 8), server(B, 2, 6)], RouteOptions(pins={Span(3, 5): B}))
    assert route == (Hop(A, Span(0, 3)), Hop(B, Span(3, 5)), Hop(A, Span(5, 8)))
    with pytest.raises(NoRoute, match="num_tokens, pins"):  # room for five of its eight blocks, and six are asked for
        peers(server(A, 0, 8), server(B, 2, 6), pins={Span(3, 5): B}, num_tokens=1500)


def test_free_cache_is_shared_by_the_blocks_of_a_span() -> None:
    """1,000 tokens of cache over eight blocks hold 2,000 tokens of four."""
    both = [server(A, 0, 8), server(B, 0, 8)]
    assert peers(*both, num_tokens=1000) == "a"
    assert [len(hop.span) for hop in plan_route(ALL, both, RouteOptions(num_tokens=2000))] == [4, 4]
    with pytest.raises(NoRoute, match="excluded by num_tokens") as caught:
        peers(*both, num_tokens=9000)
    assert caught.value.missing == ((0, 8),)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"deny": frozenset({A})}, {}),
        ({"allow": frozenset({B})}, {}),
        ({"min_bits": 8.0}, {"bits_per_weight": 4.0}),
        ({"min_bits": 8.0}, {"bits_per_weight": float("nan")}),
        ({"min_bits": 0.1}, {"bits_per_weight": 0.0}),
        ({"max_kl": 0.05}, {"kl_nats": 0.06}),
        ({"max_kl": 0.05}, {"kl_nats": float("nan")}),
        ({"max_kl": 0.0}, {"kl_nats": None}),
        ({"numerics": "x"}, {"numerics": "y"}),
        ({"same_bits": 32.0}, {"bits_per_weight": 30.0}),
        ({"same_bits": 32.0}, {"bits_per_weight": 0.0}),
        ({"broken_links": frozenset({(CLIENT, A)})}, {}),
        ({"broken_links": frozenset({(A, CLIENT)})}, {}),
        ({"pins": {7: B}}, {"decode_rows_per_s": 1.0}),
        ({}, {"draining": True}),
    ],
)
def test_options_leave_servers_out(options: dict[str, object], change: dict[str, object]) -> None:
    """Another server takes over; if there is none, the error names the option."""
    best = {"numerics": "x", "bits_per_weight": 32.0, "kl_nats": 0.0}
    first, second = server(A, 0, 8, **{**best, **change}), server(B, 0, 8, **best, queued_rows=9)
    assert peers(first, second, **options) == "b"
    with pytest.raises(NoRoute, match=next(iter(options), "draining")):
        peers(first, **options)


def test_what_is_missing_is_named() -> None:
    """Blocks without a server, and blocks whose servers were excluded, with the reasons."""
    servers = [server(A, 0, 2), server(B, 4, 5), server(C, 5, 6, draining=True), server(D, 4, 6)]
    with pytest.raises(NoRoute) as caught:
        peers(*servers, deny=frozenset({D}))
    assert caught.value.missing == ((2, 4), (5, 8))
    assert str(caught.value) == (
        "no server holds blocks 2:4, 6:8; blocks 5:6 are only on servers that are excluded by deny, draining"
    )
    with pytest.raises(NoRoute, match="is not in the snapshot"):
        estimate_route((Hop(A, Span(0, 2)),), servers[1:])


def test_a_floor_that_is_not_met_is_told_with_what_there_is() -> None:
    """What was demanded, and what each server of those blocks says, by its name or its id; a server beside them is not."""
    servers = [
        server(A, 0, 4, name="near", bits_per_weight=8.25, kl_nats=0.01),
        server(B, 4, 8, bits_per_weight=4.25, kl_nats=0.2),
        server(C, 4, 8, name="old"),
        server(D, 4, 8, name="gone", draining=True),
    ]
    assert peers(*servers, min_bits=4.0, max_kl=0.2) == "ab"
    with pytest.raises(NoRoute) as caught:
        peers(*servers, min_bits=8.0)
    assert caught.value.missing == ((4, 8),)
    assert str(caught.value) == (
        "blocks 4:8 are only on servers that are excluded by draining, min_bits; "
        "min_bits demands 8 bits per weight: bbbbbbbb says 4.25, old does not say"
    )
    with pytest.raises(NoRoute) as caught:
        peers(*servers, min_bits=16, max_kl=0.001)  # both are told, though one of them alone excludes
    assert str(caught.value).endswith(
        "min_bits demands 16 bits per weight: bbbbbbbb says 4.25, near says 8.25, old does not say; "
        "max_kl demands 0.001 nats at most: bbbbbbbb says 0.2, near says 0.01, old does not say"
    )


def test_broken_links_are_gone_around() -> None:
    """Two servers that cannot reach each other are joined by a third, or not at all."""
    ends = [server(A, 0, 4), server(B, 4, 8)]
    broken = frozenset({(A, B)})
    assert peers(*ends, server(C, 3, 5, decode_rows_per_s=1.0), broken_links=broken) == "acb"
    with pytest.raises(NoRoute, match="no route connects them within broken_links"):
        peers(*ends, broken_links=broken)


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1.0, 1e-300])
def test_impossible_numbers_do_no_harm(nonsense: float) -> None:
    """A peer may write anything into its record."""
    lying = server(
        A,
        0,
        8,
        decode_rows_per_s=nonsense,
        prefill_rows_per_s=nonsense,
        queued_rows=-(1 << 62),
        free_tokens=-5,
        round_trips=((B, nonsense), (A, nonsense)),
    )
    assert peers(lying, server(B, 4, 8, queued_rows=1 << 62)) in ("a", "ab")
    assert peers(lying, server(B, 0, 8), num_tokens=5) == "b"


def test_a_large_swarm_is_planned_for() -> None:
    """Above the size of exact sharing a route still covers the span and keeps to what servers have room for."""
    servers = [server(PeerId(f"{n:064x}"), n % 40, n % 40 + 20, free_tokens=100 * (n % 7)) for n in range(200)]
    for goal in ("latency", "throughput"):
        options = RouteOptions(goal=goal, num_tokens=500)  # type: ignore[arg-type]
        route = plan_route(Span(0, 55), servers, options)
        assert [hop.span.start for hop in route] == [0, *(hop.span.stop for hop in route[:-1])]
        assert route[-1].span.stop == 55
        used = dict.fromkeys((hop.peer for hop in route), 0)
        for hop in route:
            used[hop.peer] += len(hop.span)
        rooms = {record.peer: record.free_tokens * 20 // 500 for record in servers}
        assert all(blocks <= rooms[peer] for peer, blocks in used.items())


def test_models_are_told_apart_by_fingerprint() -> None:
    """Two checkpoints of one name are never mixed, and the error shows both."""
    one = server(A, 0, 4, name="left")
    other = msgspec.structs.replace(one, peer=B, name="right", model=ModelSpec("tiny", "e" * 32, 8, 48))
    assert same_model([one, other], fingerprint="f" * 32) == [one]
    assert same_model([one], "tiny") == [one]
    for name, fingerprint in (("tiny", None), (None, None), ("tiny", "d" * 32)):
        with pytest.raises(FingerprintMismatch, match=r"left.*right|right.*left"):
            same_model([one, other], name, fingerprint)
    with pytest.raises(NoRoute, match="tiny"):
        same_model([one], "large")
    with pytest.raises(NoRoute, match="nothing"):
        same_model([])
