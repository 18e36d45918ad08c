"""A link of a session: from where to where, and what keeps it up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from shoal.clock import Clock
from shoal.errors import NetworkError, ShoalError
from shoal.protocol.messages import MAX_TEXT_CHARS, LinkState
from shoal.transport.frame_channel import FrameChannel

H = TypeVar("H")

Endpoint: TypeAlias = H | None
"""A hop, or (None) the client."""

REDIAL_FIRST_S = 0.05
REDIAL_MOST_S = 1.0
"""The first and the longest wait before a link is dialled again. One that lasted longer than that begins anew."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class LinkKey(NamedTuple, Generic[H]):
    """Between whom a link is, and whether its receiver only follows: stands by for another hop."""

    sender: Endpoint[H]
    receiver: Endpoint[H]
    follows: bool = False


def _untold(state: LinkState) -> None:
    """For a link whose state is told to nobody."""


class Link(Generic[H]):
    """A link as the client ordered it, and this side's tasks that keep it up.

    `tell` is told when it is up and down, and why, in the words of `explain`; `retried` are the errors after which it is
    dialled again.
    """

    def __init__(
        self,
        key: LinkKey[H],
        generation: int,
        clock: Clock,
        tell: Callable[[LinkState], None] = _untold,
        retried: tuple[type[ShoalError], ...] = (NetworkError,),
        explain: Callable[[ShoalError], str] = str,
    ) -> None:
        self.key = key
        self.generation = generation
        self.since = clock.monotonic()
        self._clock = clock
        self._tell = tell
        self._retried = retried
        self._explain = explain
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """What was started for it here."""
        return tuple(self._tasks)

    def start(self, spawn: Spawn, work: Coroutine[Any, Any, None]) -> None:
        """Run a part of it in a task that ends with the link."""
        self._tasks.append(spawn(work))

    def cut(self) -> None:
        """End this side's part."""
        for task in self._tasks:
            task.cancel()

    async def keep_up(
        self, dial: Callable[[], Awaitable[FrameChannel]], serve: Callable[[FrameChannel], Awaitable[None]]
    ) -> None:
        """Dial and serve, and again when the channel breaks, until cancelled. Raises an error that is not retried."""
        wait_s = REDIAL_FIRST_S
        while True:
            began = self._clock.monotonic()
            try:
                async with await dial() as frames:
                    self._tell(LinkState(self.generation, "up"))
                    await serve(frames)
            except ShoalError as error:
                self._tell(LinkState(self.generation, "down", self._explain(error)[:MAX_TEXT_CHARS]))
                if not isinstance(error, self._retried):
                    raise
            if self._clock.monotonic() - began > REDIAL_MOST_S:
                wait_s = REDIAL_FIRST_S
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, REDIAL_MOST_S)
