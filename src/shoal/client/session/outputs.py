"""The rows that come back from a session's last hop."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import torch

from shoal.client.session.stream_check import StreamCheck
from shoal.clock import Clock
from shoal.errors import WrongRows
from shoal.model.row_tensors import decode_tensor
from shoal.protocol.messages import MAX_POSITION, HopTrace, RowCodec, RowsFrame
from shoal.protocol.row_stream import Sender
from shoal.protocol.rows import RowForm


class OutputFrame(NamedTuple):
    """A frame of outputs: the position of its first row, when it arrived (wall clock), and what the hops say of it."""

    position: int
    arrived_at: float
    trace: tuple[HopTrace, ...]


class SessionOutputs:
    """The sink of a session's receiver: keeps the outputs of the present step.

    `sender` is the client's own end of the stream: no more can come back than was sent.
    """

    def __init__(self, hidden_size: int, codec: RowCodec, sender: Sender, clock: Clock) -> None:
        self.frames: list[OutputFrame] = []
        self._form = RowForm(codec, hidden_size)
        self._stream = StreamCheck(sender)
        self._sender = sender
        self._needed_from = MAX_POSITION
        self._clock = clock
        self._rows: list[tuple[int, torch.Tensor]] = []
        self._changed = asyncio.Event()

    def begin(self, needed_from: int = MAX_POSITION) -> None:
        """A new step, of whose outputs those from `needed_from` on must come; what there is of the last one goes."""
        self._needed_from = needed_from
        self._rows.clear()
        self.frames.clear()

    def last(self, num_rows: int) -> torch.Tensor:
        """The last rows that came [num_rows, hidden]."""
        tensors = [tensor for _, tensor in self._rows]
        return (tensors[0] if len(tensors) == 1 else torch.cat(tensors))[-num_rows:]

    def wake(self) -> None:
        """Something that a step may wait for has changed."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait for outputs, or for `wake`, since the last call."""
        await self._changed.wait()
        self._changed.clear()

    @property
    def full(self) -> bool:
        """RowSink: there is always room for what was asked for."""
        return False

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """RowSink: the form of a frame from the last hop, and that it leaves out no row that the step needs."""
        self._form.check(rows, payload)
        self._stream.rows(rows)
        stop = rows.position + rows.elided
        if rows.elided and rows.epoch == self._sender.epoch and stop > self._needed_from:
            text = f"rows {max(rows.position, self._needed_from)}:{stop} were left out, and the step needs them"
            raise WrongRows(text, relayed=True)

    def truncate(self, position: int) -> None:
        """RowSink: outputs from `position` on are void."""
        self._rows = [(at, tensor[: position - at]) for at, tensor in self._rows if at < position]

    def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """RowSink: outputs that the last hop sent."""
        arrived_at = self._clock.wall()
        tensor = decode_tensor(payload, rows.count - rows.elided, self._form.hidden_size, self._form.codec)
        kept = tensor[skip - rows.elided :] if skip > rows.elided else tensor
        self._rows.append((rows.position + rows.count - kept.shape[0], kept))
        self.frames.append(OutputFrame(rows.position, arrived_at, rows.trace))
        self._changed.set()
