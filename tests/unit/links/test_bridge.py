"""A link through the client: what comes in goes out, with the stream's rule on both sides."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import ProtocolError
from shoal.links.bridge import Bridge
from shoal.protocol.messages import HopTrace, ReceivedUpTo, ResumeFrom, RowsFrame
from shoal.transport.frame_channel import FrameChannel
from tests.unit.links.test_row_sender import messages
from tests.unit.transport.pipe import Pipe, turns


async def test_rows_pass_in_the_call_that_brings_them() -> None:
    """From where the next hop is, with traces and what the client needs; a rewind passes too."""
    bridge, incoming, outgoing = Bridge(3, epoch=2, position=4), Pipe(), Pipe()
    frames = FrameChannel(incoming)
    assert bridge.row_receiver.attach(frames) == ReceivedUpTo(2, 4)
    tasks = [
        asyncio.ensure_future(bridge.row_receiver.serve(frames)),
        asyncio.ensure_future(bridge.log.next.serve(FrameChannel(outgoing))),
    ]
    await turns()
    incoming.arrive(ResumeFrom(2, 4))
    outgoing.arrive(ReceivedUpTo(2, 4))
    trace = (HopTrace(1.0, 0.1, 0.2),)
    incoming.arrive(RowsFrame(2, 3, 3, 2, reply=1, trace=trace), b"oldonetwo")
    incoming.arrive(RowsFrame(3, 5, 1, 2), b"new")
    from_, rows, again = messages(outgoing)
    assert from_ == ResumeFrom(2, 4)
    assert rows == RowsFrame(2, 4, 2, 2, reply=1, trace=trace)
    assert isinstance(again, RowsFrame)
    assert (again.epoch, again.position, again.after) == (3, 5, 2)
    for task in tasks:
        task.cancel()


def test_the_form_of_frames_is_checked() -> None:
    """Elided rows and lengths that do not fit are not passed on."""
    bridge = Bridge(3, 0, 0)
    for rows, payload in ((RowsFrame(0, 0, 2, 0), b"one"), (RowsFrame(0, 0, 2, 0, elided=1), b"one")):
        with pytest.raises(ProtocolError, match="rows came with"):
            bridge.check(rows, payload)
    assert not bridge.full
