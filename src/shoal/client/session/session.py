"""A session: caches held along a route, and the row stream through them."""

from __future__ import annotations

import asyncio
import operator
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from shoal.client.prompt import rows_tensor
from shoal.client.saved_reply import SavedHop, SavedSession
from shoal.client.session.outputs import SessionOutputs
from shoal.client.session.planner import Planner, SessionSpec
from shoal.client.session.route_state import FailoverEvent
from shoal.client.session.stream_check import StreamCheck
from shoal.client.session.supervisor import RouteSupervisor
from shoal.client.step_trace import StepTrace, step_trace
from shoal.clock import Clock
from shoal.errors import GrantExceeded, UsageError
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.model.row_tensors import encode_tensor
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import MAX_POSITION, Numerics, Rewind, RowCodec
from shoal.protocol.row_codec import all_finite
from shoal.protocol.row_stream import Receiver, Sender
from shoal.types import Route

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Session:
    """Open with `async with`. One step at a time; `position` is the number of rows in the stream."""

    def __init__(self, terms: SessionSpec, planner: Planner, clock: Clock) -> None:
        self.model = terms.model
        self.options = terms.options
        self.last_trace: StepTrace | None = None
        self._clock = clock
        # The client is the root of the stream: its journal is never evicted.
        self._log = RowLog(Journal(terms.row_bytes, MAX_POSITION))
        self._outputs = SessionOutputs(terms.model.hidden_size, terms.options.row_codec, self._log.sender, clock)
        self._row_receiver = RowReceiver(Receiver(), self._outputs, StreamCheck(self._log.sender).resumed)
        ends = self._log, self._row_receiver
        self.supervisor = RouteSupervisor(terms, planner, ends, clock, on_change=self._outputs.wake)
        self.supervisor.keep_private(terms.resumed == 0)
        self._sent_at: dict[int, float] = {}
        self._stepping = asyncio.Lock()
        self._closed = False

    @property
    def route(self) -> Route:
        """The hops, in order."""
        return tuple(client.hop for client in self.supervisor.hops)

    @property
    def hop_names(self) -> tuple[str, ...]:
        """The hops' names for people, in order."""
        return tuple(client.name for client in self.supervisor.hops)

    @property
    def numerics(self) -> tuple[Numerics, ...]:
        """The hops' arithmetic, in order."""
        return tuple(client.numerics for client in self.supervisor.hops if client.numerics is not None)

    @property
    def exact(self) -> bool:
        """Whether every row so far has the bits that an undisturbed run gives."""
        return self.supervisor.state.arithmetic.exact

    @property
    def failovers(self) -> list[FailoverEvent]:
        """What was repaired since the session was opened; the first entry is the opening."""
        return list(self.supervisor.state.failovers)

    @property
    def waiting(self) -> str:
        """What is being repaired or waited for now; empty while all is well."""
        event = self.supervisor.state.failover
        return "" if event is None else event.missing or event.reason

    @property
    def position(self) -> int:
        """Rows in the stream; the next step's first row gets this position."""
        return self._sender.end

    @property
    def returned(self) -> int:
        """Rows of the stream that have come back through the whole route, whether or not their bytes were wanted."""
        return self._row_receiver.receiver.position

    @property
    def _sender(self) -> Sender:
        return self._log.sender

    async def step(self, hidden_states: torch.Tensor | ArrayLike, *, reply: int | None = None) -> torch.Tensor:
        """Send rows [n, hidden] or [1, n, hidden], a tensor or an array, through the route.

        Returns the last `reply` rows (all: None) as a tensor of the same form. A server that fails meanwhile is replaced.
        A cancelled step takes its rows back. Raises GrantExceeded for more rows than the session has room for, UsageError
        for a wrong shape or numbers that cannot travel, NoRoute (or what the last server said) when blocks had no server
        for `patience_s`: the step's rows are taken back then, and the step may be tried again.
        """
        hidden_states = rows_tensor(hidden_states)
        rows = hidden_states[0] if hidden_states.dim() == 3 and hidden_states.shape[0] == 1 else hidden_states
        self._check_step(rows, reply)
        async with self._stepping:
            outputs = await self._step(rows, rows.shape[0] if reply is None else reply)
        return outputs.unsqueeze(0) if hidden_states.dim() == 3 else outputs

    def _check_step(self, rows: torch.Tensor, reply: int | None) -> None:
        hidden_size = self.model.hidden_size
        if rows.dim() != 2 or rows.shape[0] == 0 or rows.shape[1] != hidden_size:
            raise UsageError(f"a step takes [n, {hidden_size}] or [1, n, {hidden_size}], not {list(rows.shape)}")
        if reply is not None and not 1 <= reply <= rows.shape[0]:
            raise UsageError(f"reply must be from 1 to the step's {rows.shape[0]} rows, not {reply}")
        if self.position + rows.shape[0] > self.options.max_tokens:
            wanted = self.position + rows.shape[0]
            raise GrantExceeded(f"{wanted} tokens are more than the {self.options.max_tokens} of this session")

    async def _step(self, rows: torch.Tensor, reply: int) -> torch.Tensor:
        start, stop = self.position, self.position + rows.shape[0]
        if self._closed:
            raise UsageError("the session is closed")
        parts = self._encoded(rows)
        self._outputs.begin(needed_from=stop - reply)
        self._sent_at.clear()
        self.supervisor.begin_step(rows.shape[0])
        done = False
        try:
            self._send(parts, needed_from=stop - reply)
            while not (done := self._has(stop)):
                if self.supervisor.stuck is not None:
                    raise self.supervisor.stuck
                await self._outputs.changed()
                if self._outputs.frames:
                    self.supervisor.progressed()
        except BaseException:
            await self.rewind(start)
            raise
        finally:
            self.supervisor.end_step(done)
        self.last_trace = self._trace()
        return self._outputs.last(reply)

    def _trace(self) -> StepTrace | None:
        """The times of the step's last frame that went through the present route."""
        clients = self.supervisor.hops
        for frame in reversed(self._outputs.frames):
            sent_at = self._sent_at.get(frame.position)
            if sent_at is not None and len(frame.trace) == len(clients):
                offsets = [client.heartbeat.clock_offset_s for client in clients]
                return step_trace(sent_at, frame.arrived_at, self.hop_names, frame.trace, offsets)
        return None

    def _has(self, stop: int) -> bool:
        receiver = self._row_receiver.receiver
        return receiver.position >= stop and receiver.epoch >= self._sender.epoch

    def _encoded(self, rows: torch.Tensor) -> list[tuple[int, bytes]]:
        """Rows as they travel, in frames of so many each. Raises UsageError for numbers that no server could compute with."""
        codec, parts = self.options.row_codec, list[tuple[int, bytes]]()
        for part in torch.split(rows, self.options.prefill_chunk_rows) if rows.shape[0] else ():
            data = encode_tensor(part, codec)
            if not all_finite(data, codec):
                raise UsageError(_not_finite(rows, codec), field="hidden_states")
            parts.append((part.shape[0], data))
        return parts

    def _send(self, parts: list[tuple[int, bytes]], needed_from: int) -> None:
        for count, data in parts:
            position = self.position
            self._sent_at[position] = self._clock.wall()
            self._log.append(RowChunk(position, count, data, needed_from))

    async def rewind(self, position: int) -> None:
        """Take back the rows from `position` on, at every hop. Raises UsageError for a position beyond the stream."""
        try:
            position = operator.index(position)
        except TypeError as error:
            raise UsageError(f"a position is a whole number, not {position!r}", field="position") from error
        if not 0 <= position <= self.position:
            raise UsageError(f"cannot rewind to {position}: the session has {self.position} rows")
        if position == self.position:
            return
        epoch = self._sender.epoch + 1
        self._log.rewind(epoch, position)
        truncate_to = self._row_receiver.receiver.on_rewind(Rewind(epoch, position, epoch - 1))
        self._outputs.truncate(position if truncate_to is None else truncate_to)
        await asyncio.gather(*(client.rewind(self._sender) for client in self.supervisor.everybody))

    async def open(self, patience_s: float) -> None:
        """Make the route; see `AsyncClient.session` for what is raised."""
        await self.supervisor.open(patience_s)

    def save(self) -> SavedSession:
        """What a later process needs to take this session up, beside its tokens."""
        self.supervisor.keep_private(False)
        hops = [
            SavedHop(client.record.data, client.hop.span, client.keys, client.numerics, client.weights)
            for client in self.supervisor.hops
            if client.numerics is not None
        ]
        terms, epoch = self.supervisor.terms, self._sender.epoch
        return SavedSession(
            terms.model, terms.span, terms.options, terms.resumed, self.position, epoch, self.exact, tuple(hops)
        )

    async def resume(self, saved: SavedSession, hidden_states: torch.Tensor, patience_s: float) -> None:
        """Take up a saved session whose rows below its position are `hidden_states` [position, hidden].

        Servers that still hold it go on from what they have; the others are replaced, and get the rows again. Raises what
        `open` raises, SessionFenced when a later process has taken it up already.
        """
        clients = [self.supervisor.client(*hop.parts()) for hop in saved.hops]
        pairs = zip(clients, saved.hops, strict=True)
        attached = await asyncio.gather(
            *(client.take_up(saved.epoch, hop.numerics, hop.weights) for client, hop in pairs)
        )
        held = [state for state in attached if state is not None]
        epoch = 1 + max([saved.epoch, *(state.epoch for state in held)])
        # Rows above the base of a rewind that not all of us know may differ: those of the old process after the file was
        # written are told by the hops, those before that a hop has missed are not.
        behind = any(state.epoch < saved.epoch for state in held)
        base = min([0 if behind else saved.position, *(state.base for state in held)])
        self._refill(hidden_states, base, epoch)
        await asyncio.gather(*(client.rewind(self._sender) for client in clients if client.lost is None))
        self.supervisor.adopt(clients, saved.exact)
        await self.open(patience_s)

    def _refill(self, hidden_states: torch.Tensor, base: int, epoch: int) -> None:
        """The journal as it was; rows from `base` on are sent again in a new epoch to whoever had others."""
        position = hidden_states.shape[0]
        before, after = self._encoded(hidden_states[:base]), self._encoded(hidden_states[base:])
        self._send(before, needed_from=position)
        self._log.rewind(epoch, base)
        self._send(after, needed_from=position)
        self._row_receiver.receiver.resume(epoch, position)

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<Session {self.model.name!r} blocks {self.supervisor.terms.span}, {self.position} rows{state}>"

    async def close(self, end: bool = True) -> None:
        """End the session at every hop; `end` False leaves it there for as long as servers keep it. Twice is harmless."""
        self._closed = True
        await self.supervisor.close(end)
        self._log.journal.clear()  # the session itself may be garbage that nobody collects for a long time
        self._outputs.begin()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _not_finite(rows: torch.Tensor, codec: RowCodec) -> str:
    """Which of the caller's rows [n, hidden] cannot travel, and why."""
    wrong = ~torch.isfinite(rows).all(dim=1)
    if wrong.any():
        return f"row {int(wrong.nonzero()[0])} of the step's {rows.shape[0]} holds numbers that are not finite"
    return f"the step holds numbers that are too large to travel as {codec}: ask for another row_codec"
