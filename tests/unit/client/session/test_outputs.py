"""The rows that come back to the client."""

from __future__ import annotations

import asyncio
import math
import struct

import pytest
import torch

from shoal.client.session.outputs import SessionOutputs
from shoal.clock import SYSTEM_CLOCK
from shoal.errors import ProtocolError, WrongRows
from shoal.model.row_tensors import encode_tensor
from shoal.protocol.messages import HopTrace, RowsFrame
from shoal.protocol.row_stream import Sender

ROWS = torch.arange(24, dtype=torch.float32).reshape(6, 4)


def outputs_of(sent: int) -> SessionOutputs:
    """Of a session that has sent rows."""
    sender = Sender()
    sender.append(sent)
    return SessionOutputs(4, "fp32", sender, SYSTEM_CLOCK)


def frame(start: int, stop: int, elided: int = 0, epoch: int = 0) -> tuple[RowsFrame, bytes]:
    """A frame with these of the rows."""
    rows = RowsFrame(epoch, start, stop - start, 0, elided=elided, trace=(HopTrace(1.0, 0.0, 0.0),))
    return rows, encode_tensor(ROWS[start + elided : stop], "fp32")


def test_rows_of_several_frames() -> None:
    """The last ones asked for, whatever frames they came in, known ones and elided ones left out."""
    outputs = outputs_of(6)
    outputs.begin()
    for rows, skip in ((frame(0, 2), 0), (frame(1, 4), 1), (frame(4, 6, elided=1), 0)):
        outputs.check(*rows)
        outputs.take(*rows, skip)
    assert torch.equal(outputs.last(3), torch.stack([ROWS[2], ROWS[3], ROWS[5]]))
    assert [at.position for at in outputs.frames] == [0, 1, 4]
    assert outputs.frames[0].trace == (HopTrace(1.0, 0.0, 0.0),)
    outputs.begin()
    outputs.take(*frame(5, 6), 0)
    assert torch.equal(outputs.last(1), ROWS[5:])


def test_truncation_cuts_a_frame() -> None:
    """Rows from the position on are void."""
    outputs = outputs_of(6)
    outputs.take(*frame(0, 4), 0)
    outputs.truncate(2)
    outputs.take(*frame(2, 3), 0)
    assert torch.equal(outputs.last(3), ROWS[:3])


@pytest.mark.parametrize(
    "rows",
    [
        (RowsFrame(0, 0, 2, 0), bytes(16)),
        (RowsFrame(0, 0, 2, 0, elided=3), b""),
        (RowsFrame(0, 5, 2, 0), bytes(32)),
        (RowsFrame(1, 0, 1, 0), bytes(16)),
        (RowsFrame(0, 0, 2, 0, elided=1), bytes(32)),
        (RowsFrame(0, 0, 1, 0), struct.pack("<4f", 0, 0, math.nan, 0)),
        (RowsFrame(0, 0, 1, 0), struct.pack("<4f", 0, math.inf, 0, 0)),
    ],
)
def test_a_hostile_last_hop(rows: tuple[RowsFrame, bytes]) -> None:
    """Wrong lengths, rows that were never sent, epochs that never were."""
    with pytest.raises(ProtocolError):
        outputs_of(6).check(*rows)


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        (RowsFrame(0, 0, 4, 0, elided=4), True),
        (RowsFrame(0, 2, 4, 0, elided=2), True),
        (RowsFrame(0, 0, 6, 0, elided=5), False),
        (RowsFrame(0, 4, 2, 0, elided=2), False),
        (RowsFrame(0, 5, 1, 0, elided=1), False),
        (RowsFrame(0, 0, 6, 0, elided=6), False),
    ],
)
def test_rows_that_a_step_needs_are_not_left_out(rows: RowsFrame, good: bool) -> None:
    """Those before may be; whatever is left out, its successor may have been told so by a hop before it."""
    outputs = outputs_of(6)
    outputs.begin(needed_from=4)
    payload = bytes(16 * (rows.count - rows.elided))
    if good:
        outputs.check(rows, payload)
        return
    with pytest.raises(WrongRows, match="left out") as caught:
        outputs.check(rows, payload)
    assert caught.value.relayed


def test_rows_of_an_epoch_that_is_over_are_not_judged_by_this_step() -> None:
    """What they leave out was not needed when they were sent."""
    sender = Sender()
    sender.append(6)
    sender.rewind(1, 2)
    outputs = SessionOutputs(4, "fp32", sender, SYSTEM_CLOCK)
    outputs.begin(needed_from=2)
    outputs.check(RowsFrame(0, 0, 6, 0, elided=6), b"")


async def test_a_step_is_woken() -> None:
    """By rows, and by whatever else it may wait for; what came before it waited counts."""
    outputs = outputs_of(6)
    outputs.take(*frame(0, 1), 0)
    await outputs.changed()
    waiting = asyncio.create_task(outputs.changed())
    await asyncio.sleep(0)
    assert not waiting.done()
    outputs.wake()
    await waiting
