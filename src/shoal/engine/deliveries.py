"""Callbacks from another thread into an event loop, many with one waking."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Deliveries:
    """What is posted is called in the loop, in order; one callback's mistake keeps nothing from the others."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posted: deque[Callable[[], None]] = deque()

    def post(self, callback: Callable[[], None], wake: bool = True) -> None:
        """From any thread. `wake` False: from the loop's own, which calls `deliver` in a moment."""
        self._posted.append(callback)
        if wake and len(self._posted) == 1:  # else somebody is on the way, and goes on until nothing is left
            self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """In the loop: call what was posted."""
        while self._posted:
            callback = self._posted.popleft()
            try:
                callback()
            except Exception as error:
                self._loop.call_exception_handler({"message": "a worker's callback failed", "exception": error})
