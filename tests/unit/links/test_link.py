"""What keeps a link up: one loop for clients and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from shoal.errors import ChannelClosed, DialError, IdentityError, ServerFull, ShoalError
from shoal.links.link import REDIAL_FIRST_S, REDIAL_MOST_S, Link, LinkKey
from shoal.protocol.messages import LinkState
from shoal.transport.frame_channel import FrameChannel
from tests.support.virtual_clock import VirtualClock
from tests.unit.transport.pipe import Pipe


class Kept:
    """A link whose dials end as `answers` say: an error, or for how long the channel lasts; the last counts for ever."""

    def __init__(self, retried: tuple[type[ShoalError], ...] = (DialError, ChannelClosed)) -> None:
        self.clock = VirtualClock()
        self.told: list[LinkState] = []
        self.dialled_at: list[float] = []
        self.answers: list[ShoalError | float] = [DialError("nobody there")]
        self.pipes: list[Pipe] = []
        self.link: Link[str] = Link(LinkKey("a", "b"), 7, self.clock, self.told.append, retried)

    async def dial(self) -> FrameChannel:
        """A channel, or the error."""
        self.dialled_at.append(round(self.clock.monotonic(), 6))
        answer = self.answers[0]
        if isinstance(answer, ShoalError):
            if len(self.answers) > 1:
                del self.answers[0]
            raise answer
        self.pipes.append(Pipe())
        return FrameChannel(self.pipes[-1])

    async def serve(self, frames: FrameChannel) -> None:
        """As long as the answer says."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        assert isinstance(answer, float)
        await self.clock.sleep(answer)
        raise ChannelClosed("broke")

    def start(self) -> asyncio.Task[None]:
        """Begin."""
        return asyncio.ensure_future(self.link.keep_up(self.dial, self.serve))


@pytest_asyncio.fixture
async def kept() -> AsyncIterator[Kept]:
    """A link that is not kept up yet."""
    yield Kept()


async def test_waits_grow_while_nothing_answers(kept: Kept) -> None:
    """From REDIAL_FIRST_S, twice as long each time, to REDIAL_MOST_S."""
    task = kept.start()
    await kept.clock.advance(10.0)
    waits = [round(after - before, 6) for before, after in zip(kept.dialled_at, kept.dialled_at[1:], strict=False)]
    assert waits[:5] == [REDIAL_FIRST_S * 2**power for power in range(5)]
    assert set(waits[5:]) == {REDIAL_MOST_S}
    assert {(state.generation, state.state, state.detail) for state in kept.told} == {(7, "down", "nobody there")}
    task.cancel()


async def test_a_link_that_lasted_is_dialled_at_once(kept: Kept) -> None:
    """After a life longer than REDIAL_MOST_S the waits begin anew; a short one does not count as success."""
    kept.answers = [DialError("no"), DialError("no"), 0.0, 5.0, 60.0]
    task = kept.start()
    await kept.clock.advance(8.0)
    first, second, third, fourth, fifth = kept.dialled_at
    assert [second - first, third - second, fourth - third] == pytest.approx([0.05, 0.1, 0.2])
    assert fifth - fourth == pytest.approx(5.0 + REDIAL_FIRST_S)
    assert [state.state for state in kept.told] == ["down", "down", "up", "down", "up", "down", "up"]
    assert [pipe.ended for pipe in kept.pipes] == [True, True, False]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert kept.pipes[-1].ended


async def test_a_refusal_is_raised(kept: Kept) -> None:
    """What is not retried ends the loop; what is, is the owner's choice."""
    kept.answers = [IdentityError("not granted")]
    with pytest.raises(IdentityError):
        await kept.start()
    assert [state.state for state in kept.told] == ["down"]
    patient = Kept(retried=(ServerFull,))
    patient.answers = [ServerFull("later", 1.0)]
    task = patient.start()
    await patient.clock.advance(1.0)
    assert len(patient.dialled_at) > 2
    task.cancel()


async def test_cutting_ends_what_was_started(kept: Kept) -> None:
    """All of this side's tasks for it."""
    kept.answers = [60.0]
    for _ in range(2):
        kept.link.start(asyncio.ensure_future, kept.link.keep_up(kept.dial, kept.serve))
    await kept.clock.settle()
    kept.link.cut()
    await asyncio.gather(*kept.link.tasks, return_exceptions=True)
    assert [task.cancelled() for task in kept.link.tasks] == [True, True]
    assert all(pipe.ended for pipe in kept.pipes)
