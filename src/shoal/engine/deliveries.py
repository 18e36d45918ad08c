"""Callbacks from another thread into an event loop, many with one waking."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

log = logging.getLogger("shoal.engine")


class Deliveries:
    """What is posted is called in the loop, in order; a callback's mistake is logged and keeps nothing from the others."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posted: deque[Callable[[], None]] = deque()

    def post(self, callback: Callable[[], None]) -> None:
        """From any thread."""
        self._posted.append(callback)
        if len(self._posted) == 1:  # else a call is on its way, and goes on until nothing is left
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._posted:
            callback = self._posted.popleft()
            try:
                callback()
            except Exception:
                log.exception("a callback of the engine failed")
