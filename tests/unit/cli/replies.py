"""Replies as commands get them, for tests."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from shoal.client.completion import Completion, RouteHop, Timings, Usage
from shoal.client.step_trace import HopTime, StepTrace
from shoal.types import PeerId, Span

NEAR, FAR = (
    RouteHop(PeerId(letter * 64), name, span)
    for letter, name, span in (("a", "near", Span(0, 2)), ("b", "far", Span(2, 4)))
)


def trace(network_s: float, *names: str) -> StepTrace:
    """A step over these hops, each 1 ms in a queue and 2 ms computing."""
    return StepTrace(1.0, tuple(HopTime(name, network_s, 0.001, 0.002, 1, 1) for name in names), 0.004)


COMPLETION = Completion(
    text="a reply",
    token_ids=(4, 5),
    finish_reason="stop",
    usage=Usage(3, 0, 2),
    route=(NEAR, FAR),
    timings=Timings(0.5, 0.25, 3, 1),
    failovers=(),
    seed=7,
    exact=True,
    traces=(trace(0.010, "near", "far"), trace(0.030, "near", "far"), trace(9.0, "gone", "far")),
    prompt_ids=(1, 2, 3),
)


class Stream:
    """A stream of pieces; an error among them is raised."""

    def __init__(self, *pieces: str | BaseException, completion: Completion = COMPLETION) -> None:
        self.pieces = pieces
        self.completion = completion
        self.closed = False
        self.usage, self.route, self.failovers = completion.usage, completion.route, completion.failovers
        self.text, self.timings = completion.text, completion.timings

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[str]:
        for index, piece in enumerate(self.pieces):
            if isinstance(piece, BaseException):
                raise piece
            self.usage = msgspec.structs.replace(self.usage, completion_tokens=index + 1)
            yield piece
