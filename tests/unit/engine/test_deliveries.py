"""Callbacks into an event loop from another thread."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import pytest

from shoal.engine.deliveries import Deliveries


async def test_what_is_posted_is_called_in_order() -> None:
    """From another thread, and from a callback itself."""
    deliveries, called, done = Deliveries(asyncio.get_running_loop()), list[int](), asyncio.Event()

    def post_all() -> None:
        for number in range(3):
            deliveries.post(partial(called.append, number))
        deliveries.post(lambda: deliveries.post(done.set))

    await asyncio.to_thread(post_all)
    await asyncio.wait_for(done.wait(), 10)
    assert called == [0, 1, 2]


async def test_a_mistake_keeps_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Its trace is in the log."""
    done, deliveries = asyncio.Event(), Deliveries(asyncio.get_running_loop())
    with caplog.at_level(logging.ERROR, "shoal"):
        deliveries.post(partial([].remove, 1))
        deliveries.post(done.set)
        await asyncio.wait_for(done.wait(), 10)
    assert "list.remove(x): x not in list" in caplog.text
    deliveries.post(done.clear)
    await asyncio.sleep(0)
    assert not done.is_set()
