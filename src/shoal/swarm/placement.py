"""Which blocks a joining server should hold, as a pure function of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.types import Span


def choose_span(num_blocks: int, count: int, held: Iterable[Span]) -> Span:
    """The window of `count` blocks whose blocks have the fewest servers.

    Compares the windows' servers per block from the weakest block upwards; among equals the first window wins.
    """
    count = min(count, num_blocks)
    servers = [0] * num_blocks
    for span in held:
        for block in span.blocks():
            if block < num_blocks:
                servers[block] += 1
    starts = range(num_blocks - count + 1)
    start = min(starts, key=lambda at: sorted(servers[at : at + count]))
    return Span(start, start + count)
