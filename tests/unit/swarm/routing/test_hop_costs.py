"""What servers tell and a client has measured, as costs in 1,024ths of a nanosecond."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.hop_costs import (
    CLIENT,
    DEFAULT_BLOCK_ROWS_PER_S,
    DEFAULT_ROUND_TRIP_S,
    MAX_BLOCK_S,
    MAX_LINK_S,
    RoundTrips,
    hop_graph,
    most_blocks,
)
from shoal.swarm.routing.hop_graph import NANOSECOND, UNREACHABLE, HopGraph
from tests.unit.swarm.routing.test_route_planner import A, B, C, server

SECOND = NANOSECOND * 1_000_000_000


def graph_of(*servers: ServerRecord, measured: RoundTrips | None = None, **options: object) -> HopGraph:
    """Their graph, with every server allowed everywhere."""
    return hop_graph(servers, np.ones((8, len(servers)), bool), measured or {}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_tokens", "blocks"), [(0, 4), (-1, 4), (1, 4), (1000, 4), (1001, 3), (2000, 2), (4000, 1), (4001, 0)]
)
def test_free_cache_is_for_a_whole_span(num_tokens: int, blocks: int) -> None:
    """1,000 tokens free in each of four blocks are as many pages for fewer blocks of longer sessions."""
    assert most_blocks(server(A, 0, 4), num_tokens) == blocks


@pytest.mark.parametrize("rate", [5e-324, 1e-308, 1e-12, 1e15])
@pytest.mark.parametrize("queued_rows", [0, 1, 1 << 48])
def test_a_servers_word_overflows_nothing(rate: float, queued_rows: int) -> None:
    """Rates within their bounds may be of any size: costs stay within theirs, without a warning on anybody's terminal."""
    graph = graph_of(server(A, 0, 4, decode_rows_per_s=rate, prefill_rows_per_s=rate, queued_rows=queued_rows))
    assert (graph.block <= MAX_BLOCK_S * SECOND).all()
    assert (graph.enter <= MAX_BLOCK_S * SECOND).all()


def test_rates_are_of_whole_spans() -> None:
    """100 rows/s through four blocks are 400 through one; who has told none counts as the median of the others."""
    graph = graph_of(
        server(A, 0, 4, decode_rows_per_s=100.0, prefill_rows_per_s=1000.0, queued_rows=8),
        server(B, 0, 2, decode_rows_per_s=400.0, prefill_rows_per_s=1000.0),
        server(C, 0, 8, decode_rows_per_s=0.0, prefill_rows_per_s=0.0),
    )
    assert graph.block.tolist() == [SECOND // 400, SECOND // 800, round(1e9 / 600) * NANOSECOND]
    assert graph.rows.tolist() == [4000.0, 2000.0, 3000.0]
    assert graph.enter.tolist() == [SECOND * 8 // 1000, 0, 0]


def test_where_nobody_has_measured() -> None:
    """A rate is assumed."""
    graph = graph_of(server(A, 0, 4, decode_rows_per_s=0.0, prefill_rows_per_s=0.0))
    assert graph.block.tolist() == [SECOND / DEFAULT_BLOCK_ROWS_PER_S]


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_rates_that_cannot_be_count_as_not_measured(rate: float) -> None:
    """They change nothing for the others either."""
    graph = graph_of(server(A, 0, 4, decode_rows_per_s=rate), server(B, 0, 4, decode_rows_per_s=100.0))
    assert graph.block.tolist() == [SECOND // 400] * 2


def test_costs_have_an_end() -> None:
    """What a record says cannot run over a whole number's bounds."""
    slow = server(A, 0, 8, decode_rows_per_s=1e-300, queued_rows=1 << 48, round_trips=((B, 1e300),))
    graph = graph_of(slow, server(B, 0, 8), measured={A: 1e300})
    assert graph.block[0] == graph.enter[0] == MAX_BLOCK_S * SECOND
    assert graph.links.first[0] == 2 * MAX_LINK_S * SECOND
    assert graph.links.row(0)[1] == MAX_LINK_S * SECOND


def test_links_that_no_server_has_measured() -> None:
    """Half the way to the client and back, of both servers; the client's own ways are taken for a tenth of a second."""
    graph = graph_of(server(A, 0, 4), server(B, 4, 8), measured={A: 0.4, B: float("nan")})
    assert graph.links.first.tolist() == graph.links.last.tolist() == [SECOND // 5, DEFAULT_ROUND_TRIP_S / 2 * SECOND]
    assert graph.links.row(0)[1] == graph.links.row(1)[0] == SECOND // 10 + DEFAULT_ROUND_TRIP_S / 4 * SECOND


def test_what_the_sender_tells_goes_before_what_the_receiver_tells() -> None:
    """One way is the half of it; servers that are not in the snapshot, and a server's way to itself, do not count."""
    graph = graph_of(
        server(A, 0, 4, round_trips=((B, 0.2), (A, 9.0), (C, 9.0))), server(B, 4, 8, round_trips=((A, 0.6),))
    )
    assert graph.links.row(0)[1] == SECOND // 10
    assert graph.links.row(1)[0] == SECOND * 3 // 10
    assert graph.links.row(0)[0] == UNREACHABLE
    alone = graph_of(server(A, 0, 4, round_trips=((B, 0.2),)), server(B, 4, 8))
    assert alone.links.row(1)[0] == SECOND // 10


def test_broken_links_cannot_be_passed() -> None:
    """One way only, between servers, from the client and to it; others are left as they are."""
    graph = graph_of(
        server(A, 0, 4, round_trips=((B, 0.2),)),
        server(B, 4, 8),
        broken_links=((A, B), (CLIENT, A), (B, CLIENT), (C, A), (A, C)),
    )
    assert graph.links.row(0)[1] == UNREACHABLE
    assert graph.links.row(1)[0] == SECOND // 10
    assert (graph.links.first == UNREACHABLE).tolist() == [True, False]
    assert (graph.links.last == UNREACHABLE).tolist() == [False, True]
