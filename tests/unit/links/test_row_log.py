"""A journal and the links that carry it."""

from __future__ import annotations

import asyncio

from shoal.links.row_log import RowLog
from shoal.links.row_sender import RowSender
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import ReceivedUpTo, ResumeFrom, RowsFrame
from shoal.transport.frame_channel import FrameChannel
from tests.unit.links.test_row_sender import messages
from tests.unit.transport.pipe import Pipe, turns


def serve(sender: RowSender, position: int) -> tuple[Pipe, asyncio.Task[None]]:
    """Let a sender send to a receiver that has all rows below a position."""
    pipe = Pipe()
    return pipe, asyncio.ensure_future(sender.serve(FrameChannel(pipe), ReceivedUpTo(0, position)))


async def test_every_sender_has_a_place_of_its_own() -> None:
    """The next hop, one that stands by, a third: each is sent what it lacks; only the next hop's rows are `unsent`."""
    log = RowLog(Journal(1, 100))
    senders = [log.next, log.add_sender(), log.add_sender()]
    log.append(RowChunk(0, 1, b"a", 0))
    log.append(RowChunk(1, 1, b"b", 0))
    served = [serve(sender, position) for position, sender in enumerate(senders)]
    await turns()
    log.append(RowChunk(2, 1, b"c", 0))
    sent = [[message.position for message in messages(pipe) if isinstance(message, RowsFrame)] for pipe, _ in served]
    assert sent == [[0, 1, 2], [1, 2], [2]]
    senders[0].detach()
    log.append(RowChunk(3, 1, b"d", 0))
    assert log.journal.unsent == 4  # as far as this side knows
    for _, task in served:
        task.cancel()


async def test_a_rewind_is_answered_at_once() -> None:
    """A receiver that knows of it already has waited for the answer; what was taken back counts as drained."""
    drained: list[int] = []
    log = RowLog(Journal(1, 100), drained=lambda: drained.append(log.sender.end))
    log.append(RowChunk(0, 3, b"abc", 0))
    pipe = Pipe()
    serving = asyncio.ensure_future(log.next.serve(FrameChannel(pipe), ReceivedUpTo(1, 1)))
    await turns()
    assert (pipe.sent, drained) == ([], [])
    log.rewind(1, 1)
    assert messages(pipe) == [ResumeFrom(1, 1)]
    assert drained
    assert log.sender.end == 1
    serving.cancel()
