"""A session: caches held along a route, and the row stream through them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import torch

from shoal.client.hop import RECONNECT_S, REDIAL_S, HopControl, SessionKeys
from shoal.client.trace import StepTrace, step_trace
from shoal.clock import Clock
from shoal.errors import GrantExceeded, NetworkError, ProtocolError, SessionLost, UsageError
from shoal.net.framed import FrameChannel
from shoal.net.rowlink import Inlet, Outlet
from shoal.types import ModelSpec, PeerId, Route
from shoal.wire.journal import Chunk, Journal
from shoal.wire.messages import (
    MAX_POSITION,
    SECRET_BYTES,
    Attach,
    LinkGrant,
    LinkState,
    Numerics,
    Open,
    Opened,
    Rewind,
    RowCodec,
    Rows,
)
from shoal.wire.stream import Receiver, Sender
from shoal.wire.tensors import decode_rows, encode_rows, row_bytes

T = TypeVar("T")

PREFILL_CHUNK_ROWS = 64
"""Rows of one frame of a prefill, so that all hops of a route work at once."""


class SessionOptions(msgspec.Struct, frozen=True):
    """What a caller may ask of a session."""

    max_tokens: int = 4096
    lease_s: float = 30.0
    row_codec: RowCodec = "fp32"
    prefill_chunk_rows: int = PREFILL_CHUNK_ROWS

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= MAX_POSITION:
            raise UsageError(f"max_tokens must be from 1 to {MAX_POSITION}, not {self.max_tokens}")
        if not 1 <= self.prefill_chunk_rows <= 1024:
            raise UsageError(f"prefill_chunk_rows must be from 1 to 1024, not {self.prefill_chunk_rows}")


class Session:
    """Open with `async with`. One step at a time; `position` is the number of rows in the stream."""

    def __init__(
        self, model: ModelSpec, me: PeerId, controls: list[HopControl], keys: SessionKeys, options: SessionOptions
    ) -> None:
        self.model = model
        self.options = options
        self.numerics: tuple[Numerics, ...] = ()
        self.last_trace: StepTrace | None = None
        self._me = me
        self._keys = keys
        self._controls = controls
        self._clock: Clock = controls[0].clock
        self._row_bytes = row_bytes(options.row_codec, model.hidden_size)
        # The client is the root of the stream: its journal is never evicted.
        self._outlet = Outlet(Journal(self._row_bytes, MAX_POSITION))
        self._inlet = Inlet(Receiver(), self)
        self._outputs: list[tuple[int, torch.Tensor]] = []
        self._arrived = asyncio.Event()
        self._frame_times: dict[int, float] = {}
        self._traces: list[StepTrace] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None
        self._stepping = asyncio.Lock()

    @property
    def route(self) -> Route:
        """The hops, in order."""
        return tuple(control.hop for control in self._controls)

    @property
    def hop_names(self) -> tuple[str, ...]:
        """The hops' names for people, in order."""
        return tuple(control.name for control in self._controls)

    @property
    def position(self) -> int:
        """Rows in the stream; the next step's first row gets this position."""
        return self._sender.end

    @property
    def _sender(self) -> Sender:
        return self._outlet.journal.sender

    async def step(self, hidden_states: torch.Tensor, *, reply: int | None = None) -> torch.Tensor:
        """Send rows [n, hidden] or [1, n, hidden] through the route; returns the last `reply` rows (all: None), same form.

        A cancelled step takes its rows back. Raises GrantExceeded for more rows than the session has room for,
        UsageError for a wrong shape, and what made the session fail: NetworkError, PeerError or CapacityError.
        """
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
        self._outputs.clear()
        self._traces.clear()
        self._frame_times.clear()
        self._set_active(True)
        try:
            self._send(rows, needed_from=stop - reply)
            while self._inlet.receiver.position < stop or self._inlet.receiver.epoch < self._sender.epoch:
                self._raise_failure()
                self._arrived.clear()
                await self._arrived.wait()
            self._raise_failure()
        except asyncio.CancelledError:
            await self.rewind(start)
            raise
        finally:
            self._set_active(False)
        self.last_trace = self._traces[-1] if self._traces else None
        return torch.cat([tensor for _, tensor in self._outputs])[-reply:]

    def _send(self, rows: torch.Tensor, needed_from: int) -> None:
        for part in torch.split(rows, self.options.prefill_chunk_rows):
            position, count = self.position, part.shape[0]
            self._frame_times[position] = self._clock.wall()
            data = encode_rows(part, self.options.row_codec)
            self._outlet.append(Chunk(position, count, data, needed_from))

    def _set_active(self, active: bool) -> None:
        for control in self._controls:
            control.active = active

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def rewind(self, position: int) -> None:
        """Take back the rows from `position` on, at every hop. Raises UsageError for a position beyond the stream."""
        if not 0 <= position <= self.position:
            raise UsageError(f"cannot rewind to {position}: the session has {self.position} rows")
        if position == self.position:
            return
        epoch = self._sender.epoch + 1
        self._outlet.rewind(epoch, position)
        truncate_to = self._inlet.receiver.on_rewind(Rewind(epoch, position, epoch - 1))
        self.truncate(position if truncate_to is None else truncate_to)
        await asyncio.gather(*(control.rewind(self._sender) for control in self._controls))

    def check(self, rows: Rows, payload: bytes) -> None:
        """RowTaker: the form of a frame from the last hop."""
        if rows.elided > rows.count or len(payload) != (rows.count - rows.elided) * self._row_bytes:
            raise ProtocolError(f"{rows.count} rows ({rows.elided} elided) came with {len(payload)} bytes")
        if rows.position + rows.count > self.position and rows.epoch == self._sender.epoch:
            raise ProtocolError(f"rows up to {rows.position + rows.count} came; only {self.position} were sent")
        if rows.epoch > self._sender.epoch:
            raise ProtocolError(f"rows of epoch {rows.epoch} came; this session is in {self._sender.epoch}")
        if len(rows.trace) != len(self._controls):
            raise ProtocolError(f"a trace of {len(rows.trace)} hops came back from a route of {len(self._controls)}")

    def truncate(self, position: int) -> None:
        """RowTaker: outputs from `position` on are void."""
        self._outputs = [(at, tensor[: position - at]) for at, tensor in self._outputs if at < position]

    async def take(self, rows: Rows, payload: bytes, skip: int) -> None:
        """RowTaker: outputs that the last hop sent."""
        arrived_at = self._clock.wall()
        tensor = decode_rows(payload, rows.count - rows.elided, self.model.hidden_size, self.options.row_codec)
        kept = tensor[max(0, skip - rows.elided) :]
        self._outputs.append((rows.position + rows.count - kept.shape[0], kept))
        sent_at = self._frame_times.get(rows.position)
        if sent_at is not None:
            offsets = [control.clock_offset_s for control in self._controls]
            self._traces.append(step_trace(sent_at, arrived_at, self.hop_names, rows.trace, offsets))
        self._arrived.set()

    async def _open(self) -> None:
        grants = self._grants()
        opened = await _all(
            control.open(self._request(control, grant)) for control, grant in zip(self._controls, grants, strict=False)
        )
        self.numerics = tuple(answer.numerics for answer in opened)
        for control in self._controls:
            control.on_news = self._on_news
            self._spawn(partial(control.serve, self._sender))
        await self._guarded(_all(self._redirect(index, grants, opened) for index in range(len(self._controls))))
        self._spawn(partial(self._keep, self._controls[0], grants[0], "send"))
        self._spawn(partial(self._keep, self._controls[-1], grants[-1], "receive"))

    def _grants(self) -> list[LinkGrant]:
        """One per link, n + 1 in all: who is at its sending end, but for the last: the client at its receiving end."""
        peers = [self._me, *(control.hop.peer for control in self._controls[:-1]), self._me]
        return [LinkGrant(1, peer, secrets.token_bytes(SECRET_BYTES)) for peer in peers]

    def _request(self, control: HopControl, upstream: LinkGrant) -> Open:
        keys, options = self._keys, self.options
        return Open(
            keys.session,
            keys.incarnation,
            keys.secret,
            self.model.fingerprint,
            control.hop.span,
            options.max_tokens,
            upstream,
            options.lease_s,
            options.row_codec,
        )

    async def _redirect(self, index: int, grants: list[LinkGrant], opened: list[Opened]) -> None:
        control, grant = self._controls[index], grants[index + 1]
        if index + 1 == len(self._controls):
            await control.redirect(grant)
            return
        target = self._controls[index + 1]
        link = LinkGrant(grant.generation, target.hop.peer, grant.token)
        await control.redirect(link, target.record.data, opened[index + 1].acceptance)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.append(asyncio.create_task(self._run(work)))

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:  # whatever ends a link or control task is the session's failure
            self._failure = self._failure or error
            self._arrived.set()

    async def _guarded(self, work: Coroutine[Any, Any, Any]) -> None:
        """Await something that only finishes while the session's tasks live."""
        task = asyncio.ensure_future(work)
        while not task.done():
            self._arrived.clear()
            woken = asyncio.ensure_future(self._arrived.wait())
            await asyncio.wait((task, woken), return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            if self._failure is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise self._failure
        await task

    async def _keep(self, control: HopControl, grant: LinkGrant, role: str) -> None:
        """Keep one of the client's own links up; raises NetworkError when that fails for RECONNECT_S."""
        deadline: float | None = None
        while True:
            try:
                async with await control.dial() as channel:
                    deadline = None
                    await self._serve(channel, grant, role)
            except (NetworkError, SessionLost) as error:
                now = self._clock.monotonic()
                deadline = deadline or now + RECONNECT_S
                if isinstance(error, SessionLost) or now > deadline:
                    raise NetworkError(f"the link to {control.name} does not come up: {error}") from error
                await self._clock.sleep(REDIAL_S)

    async def _serve(self, channel: FrameChannel, grant: LinkGrant, role: str) -> None:
        keys = self._keys
        if role == "send":
            await channel.send(Attach("send", keys.session, keys.incarnation, grant.token, grant.generation))
            await self._outlet.serve(channel)
            return
        have = self._inlet.attach(channel)
        channel.allow_payload(self.options.max_tokens * self._row_bytes)
        await channel.send(
            Attach("receive", keys.session, keys.incarnation, grant.token, grant.generation, have.epoch, have.position)
        )
        await self._inlet.serve(channel)

    def _on_news(self, control: HopControl, state: LinkState) -> None:
        if state.state == "gone":
            self._replay(state.position)

    def _replay(self, position: int) -> None:
        """Rows that a hop needs again are nowhere between it and the client: send them again from here."""
        chunks = self._outlet.journal.since(position)
        if not chunks or position >= self.position:
            return
        epoch = self._sender.epoch + 1
        self._outlet.rewind(epoch, position)
        for chunk in chunks:
            self._outlet.append(chunk)

    async def close(self) -> None:
        """End the session at every hop. Closing twice is harmless."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(control.close() for control in self._controls))
        self._failure = self._failure or UsageError("the session is closed")

    async def __aenter__(self) -> Session:
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at once; the first failure cancels the others and is raised as itself."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
