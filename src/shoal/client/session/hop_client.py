"""A session's control channel to one hop, the client's side: orders, heartbeats, and what the hop says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

import msgspec

from shoal.client.session.heartbeat import SILENCE_S, Heartbeat
from shoal.client.session.stream_check import StreamCheck
from shoal.clock import Clock
from shoal.errors import NetworkError, ProtocolError, RecordError, SessionFenced, ShoalError, WrongRows
from shoal.protocol.messages import (
    ATTACH,
    OPEN,
    SECRET_BYTES,
    SESSION,
    Admit,
    Admitted,
    Attach,
    Attached,
    Close,
    Leaving,
    LinkGrant,
    LinkState,
    Message,
    Numerics,
    Open,
    Pong,
    Redirect,
    Refusal,
    Rewind,
)
from shoal.protocol.refusals import refused
from shoal.protocol.row_stream import Sender
from shoal.swarm.directory.records import SignedRecord, verify_acceptance
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.types import Hop, PeerId

TICK_S = 0.125
LATE_S = 0.5
"""A tick that comes so late says that this side was not running: it proves nothing about the hop."""

DIAL_S = 1.25
"""How long a dial may take: with all else that a new session needs then, a dead server costs it less than 1.5 s."""

ORDER_S = 3.0
"""How long a hop may take to answer an order."""

OPENING_S = 4.5
"""How long it may take to open a session, the dial included: room in its cache is given out between two steps."""

KEPT_NEWS = 16
"""Links of whose state a hop's last word is known."""

MAX_EPOCHS_AHEAD = 1 << 20
"""Rewinds that a process may have made after it wrote its file: a hop that tells of more is not believed."""

MAX_BREAKS = 8
"""A connection that breaks so often with no ping answered in between is of no use."""


class SessionCredentials(msgspec.Struct, frozen=True):
    """By what a hop knows a session, and what proves it to be the client's. Every hop has its own."""

    session: bytes
    secret: bytes
    incarnation: int = 0

    def __repr__(self) -> str:
        """Without the secret: a repr ends in logs and notebooks."""
        return f"<{type(self).__name__} {self.session.hex()[:8]}, incarnation {self.incarnation}>"

    @classmethod
    def draw(cls) -> SessionCredentials:
        """Fresh ones."""
        return cls(secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(SECRET_BYTES))


class HopClient:
    """Opens a session at a hop, gives it orders, and notices when it dies. `lost` says why it is of no use any more.

    `on_change` is called when the hop is lost, leaves, or has news of a link. `opened`: it has had the session.
    """

    def __init__(
        self,
        hop: Hop,
        record: SignedRecord,
        keys: SessionCredentials,
        dialler: Dialler,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.hop = hop
        self.record = record
        self.keys = keys
        self.clock = clock
        self.lost: ShoalError | None = None
        self.leaving = False
        self.opened = False
        self.numerics: Numerics | None = None
        self.weights: tuple[str, ...] = ()
        self.heartbeat = Heartbeat(clock)
        self._on_change = on_change
        self._dialler = dialler
        self._closed = False
        self._first_grant: tuple[LinkGrant, bytes] | None = None
        self._links: dict[int, tuple[LinkState, float]] = {}
        self._channel: FrameChannel | None = None
        self._known_epoch = 0
        self._stream: StreamCheck | None = None
        self._answers: dict[tuple[str, int], asyncio.Future[Message]] = {}

    @property
    def peer(self) -> PeerId:
        """The hop's node id."""
        return PeerId(self.hop.peer)

    @property
    def name(self) -> str:
        """The server's name for people."""
        return self.record.record.name or self.hop.peer[:8]

    async def dial(self) -> FrameChannel:
        """One more channel to this hop, at the address that worked; raises what the dialler raises."""
        addresses = self._dialler.narrowed(self.peer, self.record.record.addresses)
        return FrameChannel(await self._dialler.dial(self.peer, addresses, DIAL_S))

    async def open(self, request: Open, sender: Sender) -> None:
        """Ask for the session; raises what the refusal stands for, NetworkError when no answer comes."""
        try:
            async with asyncio.timeout(OPENING_S):
                addresses = self.record.record.addresses
                self._channel = FrameChannel(await self._dialler.dial(self.peer, addresses, DIAL_S))
                opened, _ = await self._channel.ask(OPEN, request)
        except TimeoutError as error:
            raise self._named(NetworkError(f"{self.name} has not opened a session for {OPENING_S:g} s")) from error
        except ShoalError as error:
            raise self._named(error) from error.__cause__
        if opened.max_tokens < request.max_tokens or len(opened.weights) != len(self.hop.span):
            raise self._named(ProtocolError(f"{self.name} did not grant what was asked for"))
        self.opened = True
        self.numerics, self.weights = opened.numerics, opened.weights
        self._first_grant = (request.upstream, opened.acceptance)
        self._stream = StreamCheck(sender)
        self._stands_at(opened.epoch, opened.position)
        self._known_epoch = sender.epoch  # what it has missed comes with the rows

    async def attach(self, epoch: int) -> Attached:
        """Take up a session that the hop has already; raises SessionLost when it has not, and NetworkError."""
        try:
            async with asyncio.timeout(ORDER_S):
                self._channel = channel = await self.dial()
                keys = self.keys
                request = Attach("control", keys.session, keys.incarnation, keys.secret, epoch=epoch)
                attached, _ = await channel.ask(ATTACH, request)
        except TimeoutError as error:
            raise NetworkError(f"{self.name} has not taken a session up for {ORDER_S:.0f} s") from error
        self.opened = True
        self._stands_at(attached.epoch, attached.position)
        self._known_epoch = attached.epoch
        return attached

    def _stands_at(self, epoch: int, position: int) -> None:
        """What it says that it has, at an opening or on a new connection: as true as what it says at a heartbeat.

        Raises WrongRows.
        """
        before = self.heartbeat.progress
        computed = before.computed if epoch == before.epoch else 0
        told = msgspec.structs.replace(before, epoch=epoch, position=position, computed=computed)
        if self._stream is not None:
            self._stream.progress(told)
        self.heartbeat.hear(told)

    async def take_up(self, epoch: int, numerics: Numerics, weights: tuple[str, ...]) -> Attached | None:
        """`attach` in a new process, which knows the hop's arithmetic; None, and the hop is lost, when it has nothing."""
        self.numerics, self.weights = numerics, weights
        try:
            attached = await self.attach(epoch)
            if attached.epoch > epoch + MAX_EPOCHS_AHEAD:
                raise WrongRows(f"it says that the session is in epoch {attached.epoch}; the file has {epoch}")
            return attached
        except ShoalError as error:
            self.fail(error)
            return None

    def _named(self, error: ShoalError) -> ShoalError:
        return error.of_peer(self.hop.peer)

    def fail(self, error: ShoalError) -> None:
        """This hop is of no use any more; orders that wait for it fail."""
        if self.lost is None:
            self.lost = self._named(error)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self.lost)
        self._drop()
        self._on_change()

    def beat_often(self, often: bool) -> None:
        """Heartbeats are frequent while a step is under way."""
        self.heartbeat.set_active(often)

    def news_of(self, generation: int) -> tuple[LinkState, float] | None:
        """The hop's last word of a link that it sends on, and when that came (monotonic seconds)."""
        return self._links.get(generation)

    def first_grant(self, upstream: PeerId) -> LinkGrant | None:
        """The grant that the hop was opened with, if it is for that sender; for another one it is void from now on."""
        if self._first_grant is not None and self._first_grant[0].peer != upstream:
            self._first_grant = None
        return self._first_grant[0] if self._first_grant is not None else None

    async def admit(self, link: LinkGrant, follow: bool) -> bytes:
        """Tell the hop who feeds it, and whether it only follows; returns its acceptance. Raises what `lost` says."""
        if self._first_grant is not None and self._first_grant[0].generation == link.generation:
            return self._first_grant[1]
        answer = await self._order(("admit", link.generation), Admit(link, follow))
        assert isinstance(answer, Admitted)
        return answer.acceptance

    def check_acceptance(self, acceptance: bytes, upstream: PeerId, generation: int) -> None:
        """The hop is lost if this, by which it accepts a hop before it, is not what it was asked for."""
        try:
            signed = verify_acceptance(acceptance, self.clock.wall())
            stated = (signed.session, signed.peer, signed.upstream, signed.generation)
            if stated != (self.keys.session, self.peer, upstream, generation):
                raise RecordError("it accepts another link than it was asked to")
        except RecordError as error:
            self.fail(WrongRows(f"no hop can feed it: {error}"))

    async def redirect(self, order: Redirect) -> None:
        """Tell the hop where its output goes, and wait until it knows. Raises what `lost` says."""
        self._links = {at: news for at, news in self._links.items() if at > order.link.generation - KEPT_NEWS}
        await self._order(("redirect", order.link.generation), order)

    async def _order(self, key: tuple[str, int], message: Admit | Redirect) -> Message:
        if self.lost is not None:
            raise self.lost
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[key] = answer
        try:
            async with asyncio.timeout(ORDER_S):
                await self._present().send(message)
                await answer
        except (TimeoutError, NetworkError) as error:
            self.fail(await self._why(error))
            assert self.lost is not None
            raise self.lost from error
        finally:
            if answer.done() and not answer.cancelled():
                answer.exception()  # asyncio complains of errors that were never looked at
            self._answers.pop(key, None)
        return answer.result()

    async def _why(self, error: TimeoutError | NetworkError) -> ShoalError:
        """Why an order was not obeyed: a connection that broke may have been cut by a later process of this client."""
        fenced = await self._fenced() if isinstance(error, NetworkError) else None
        return fenced or NetworkError(f"{self.name} did not obey: {error or 'no answer'}")

    async def _fenced(self) -> SessionFenced | None:
        """Whether a later process has the session, as the hop says when it is asked for it."""
        try:
            await self.attach(self._known_epoch)
        except SessionFenced as fenced:
            return fenced
        except ShoalError:
            pass  # the caller knows what was wrong before
        return None

    async def link_refused(self, error: ShoalError) -> None:
        """A link to the hop is of no use: it sent what cannot be, or refused this side, maybe for a later process of it."""
        if isinstance(error, WrongRows):
            self.fail(error)
        elif self.lost is None:
            self.fail(await self._fenced() or error)

    async def rewind(self, sender: Sender) -> None:
        """Tell the hop of the rewinds that it may not know. A broken channel is no error: data carries rewinds too."""
        base = sender.least(self._known_epoch)
        if base is None or self._channel is None:
            return
        message = Rewind(sender.epoch, base, self._known_epoch)
        self._known_epoch = sender.epoch
        with contextlib.suppress(NetworkError):
            await self._channel.send(message)

    async def close(self) -> None:
        """Tell the hop that the session is over, if it can be told at once."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is None:
            return
        try:
            await channel.send(Close())
            await channel.close()
        except NetworkError:
            channel.abort()  # it will find out when the lease ends

    async def release(self) -> None:
        """A hop that was dropped may be alive after all: have it free what it holds."""
        with contextlib.suppress(ShoalError, TimeoutError):
            async with asyncio.timeout(2 * ORDER_S):
                await self.attach(0)
                await self.close()
        self._drop()

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.abort()

    def detach(self) -> None:
        """Let go of the hop without ending its session."""
        self._closed = True
        self._drop()

    def _present(self) -> FrameChannel:
        if self._channel is None:
            raise NetworkError(f"the connection to {self.name} is down")
        return self._channel

    async def run(self, sender: Sender) -> None:
        """Ping and listen until the hop is lost or closed. A connection that broke is dialled again, once."""
        breaks, answers = 0, self.heartbeat.answers
        self._stream = stream = self._stream or StreamCheck(sender)
        while True:
            await self._talk(stream)
            if self._closed or self.lost is not None:
                return
            breaks = breaks + 1 if self.heartbeat.answers == answers else 0
            answers = self.heartbeat.answers
            try:
                if breaks > MAX_BREAKS:
                    raise NetworkError(f"the connection to {self.name} broke {breaks} times, and no ping was answered")
                await self.attach(sender.epoch)
                await self.rewind(sender)
            except ShoalError as error:
                self.fail(error)
                return

    async def _talk(self, stream: StreamCheck) -> None:
        """Until the connection breaks, or the hop is lost."""
        channel = self._channel
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(stream))
                tasks.create_task(self._beat())
        except* NetworkError:
            if self._channel is channel:  # `release` may have another by now
                self._drop()
        except* ShoalError as group:
            self.fail(next(error for error in group.exceptions if isinstance(error, ShoalError)))

    async def _listen(self, stream: StreamCheck) -> None:
        while True:
            channel = self._present()
            message, _ = await channel.receive(SESSION)
            if isinstance(message, Pong):
                stream.progress(message)
                if not self.heartbeat.on_pong(message):
                    raise RecordError(f"{self.name} answered a ping that was not sent")
            elif isinstance(message, Admitted):
                self._answer(("admit", message.generation), message)
            elif isinstance(message, LinkState):
                self._on_link(message)
            elif isinstance(message, Leaving):
                self.leaving = not message.called_off
                self._on_change()
            elif isinstance(message, Refusal):
                raise refused(message, self.peer)
            else:
                raise ProtocolError(f"{self.name} sent {type(message).__name__} on a control channel")
            await channel.idle_words.take(1)

    def _answer(self, key: tuple[str, int], message: Message) -> None:
        answer = self._answers.get(key)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def _on_link(self, news: LinkState) -> None:
        if news.state == "ready":
            self._answer(("redirect", news.generation), news)
            return
        before = self._links.get(news.generation)
        if before is None or before[0].state != news.state:
            self._links.pop(news.generation, None)
            self._links[news.generation] = (news, self.clock.monotonic())
            if len(self._links) > KEPT_NEWS:  # of links that nobody has ordered
                del self._links[next(iter(self._links))]
            self._on_change()

    async def _beat(self) -> None:
        heartbeat = self.heartbeat
        heartbeat.reconnected()
        sent_at = float("-inf")
        while True:
            now = self.clock.monotonic()
            if now - sent_at >= heartbeat.interval_s - TICK_S / 2:
                sent_at = now
                await self.ping()
            await self.clock.sleep(TICK_S)
            woke_at = self.clock.monotonic()
            if woke_at - now > TICK_S + LATE_S:
                heartbeat.restart()
            elif heartbeat.silent(woke_at):
                error = NetworkError(f"{self.name} was not heard for {SILENCE_S} s")
                self.fail(error)
                raise error

    async def ping(self) -> None:
        """Ask the hop how far it is; the answer is `heartbeat.progress`. Raises NetworkError on a broken connection."""
        ping = self.heartbeat.ping()
        await self._present().send(ping)
