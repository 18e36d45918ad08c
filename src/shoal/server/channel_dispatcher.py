"""Where channels arrive: how many a node may have, what anybody may ask, and, while blocks are served, everything else."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import ChannelClosed, IdentityError, NetworkError, ProtocolError, ServerFull, ShoalError
from shoal.protocol.messages import EXCHANGE, FIRST, LEAVE, QUESTIONS, Leave, Leaving, Message, RecordDigest
from shoal.protocol.refusals import refusal
from shoal.server.accounts import Accounts
from shoal.server.answers import Answers
from shoal.server.sessions.session_service import DRAIN_S, SessionService
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.transport.address import source_network
from shoal.transport.channel import Channel
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.slots import Slots
from shoal.transport.token_bucket import TokenBucket, TokenBuckets
from shoal.types import PeerId

FIRST_MESSAGE_S = 10.0
MAX_FIRST_HEADER_BYTES = 4096
"""The largest header on a channel that is not a link."""

MAX_CHANNELS = 4096

MAX_UNSETTLED = 288
"""Channels at once that are not a session's; one more drops an old one of the busiest account."""

MAX_EXCHANGES = 16
"""Exchanges of records at once, counted from the digest on; one more drops an old one of the busiest account."""

MAX_CHANNELS_PER_PEER = 256
"""Channels of one node at once: more than the links of all its sessions need, and too few to shut others out."""

IDLE_WORDS_PER_S, IDLE_WORDS = 2000.0, 1000.0
"""Messages that bring a session nothing new, pings and other orders among them, that one account may send: so many a second,
and so many at once. Its channels are read later beyond that."""

MAX_SOURCES = 4096
"""Accounts whose messages are counted; beyond that the one whose last channel is the oldest is forgotten."""

LOADING_RETRY_S = 10.0
"""What a server advises that is loading blocks."""

_PER_SPAN = {question.request for question in QUESTIONS if question.per_span}


LOG_LINES, LOG_LINES_PER_S = 20.0, 1.0
"""Refusals that are logged: so many at once and a second after that, since strangers may ask for any number."""

log = logging.getLogger("shoal.server")


class ChannelDispatcher:
    """Serves accepted channels until they end."""

    def __init__(
        self, me: PeerId, directory: Directory, clock: Clock = SYSTEM_CLOCK, accounts: Accounts | None = None
    ) -> None:
        self._accounts = accounts or Accounts()
        self._unsettled: Slots[FrameChannel] = Slots(MAX_UNSETTLED)
        self._exchanges: Slots[FrameChannel] = Slots(MAX_EXCHANGES)
        self._service: SessionService | None = None
        self.ordered_to_leave = asyncio.Event()
        self._me = me
        self._directory = directory
        self._channels: Counter[PeerId] = Counter()
        self._idle_words: TokenBuckets[str] = TokenBuckets(IDLE_WORDS_PER_S, IDLE_WORDS, clock, MAX_SOURCES)
        self._log_lines = TokenBucket(LOG_LINES_PER_S, LOG_LINES, clock)
        self.answers = Answers()
        self.answers.serve(EXCHANGE, self._exchange)
        self.answers.answer(LEAVE, self._leave)

    @property
    def service(self) -> SessionService | None:
        """What answers for the blocks; None while there are none."""
        return self._service

    def answer_by(self, service: SessionService | None) -> None:
        """Have this answer for the blocks from now on; None: they are not there."""
        self._service = service

    async def handle(self, channel: Channel) -> None:
        """Serve one channel; errors are told to the peer as far as it still listens."""
        account = self._accounts.of(channel.peer, source_network(channel.host))
        frames = FrameChannel(
            channel, max_header_bytes=MAX_FIRST_HEADER_BYTES, idle_words=self._idle_words.of(*account)
        )
        self._channels[frames.peer] += 1
        self._enter(self._unsettled, frames)
        try:
            self._check_channels(frames.peer)
            async with asyncio.timeout(FIRST_MESSAGE_S):
                message, payload = await frames.receive(FIRST, lambda: self._enter(self._exchanges, frames))
            await self._dispatch(frames, message, payload)
        except TimeoutError:
            await self._refuse(frames, ProtocolError(f"nothing was said within {FIRST_MESSAGE_S:.0f} s"))
        except NetworkError:
            pass  # the peer went away; whatever it held has its own lease
        except ShoalError as error:
            await self._refuse(frames, error)
        finally:
            self._channels[frames.peer] -= 1
            if not self._channels[frames.peer]:
                del self._channels[frames.peer]
            await frames.close()
            self._unsettled.leave(frames)
            self._exchanges.leave(frames)

    def _enter(self, slots: Slots[FrameChannel], frames: FrameChannel) -> None:
        """A channel takes a place, from another if need be."""
        dropped = slots.enter(frames, self._accounts.of(frames.peer, frames.network).name)
        if dropped is not None:
            dropped.abort()

    def settled(self, frames: FrameChannel) -> None:
        """This channel is a session's now, and counted with it."""
        self._unsettled.leave(frames)

    def _check_channels(self, peer: PeerId) -> None:
        """Raises ServerFull when there are too many channels."""
        if self._channels[peer] > MAX_CHANNELS_PER_PEER:
            raise ServerFull(f"{MAX_CHANNELS_PER_PEER} channels of this node are open", retry_after=1.0)
        if self._channels.total() > MAX_CHANNELS:
            raise ServerFull(f"{MAX_CHANNELS} channels are open", retry_after=1.0)

    async def _refuse(self, frames: FrameChannel, error: ShoalError) -> None:
        if self._log_lines.try_take():
            log.info("%s is refused: %s", frames.peer[:8], error)
        frames.ignore()
        try:
            async with asyncio.timeout(1.0):
                await frames.send(refusal(error))
        except (ChannelClosed, TimeoutError):
            frames.abort()

    async def _dispatch(self, frames: FrameChannel, request: Message, payload: bytes) -> None:
        if type(request) not in _PER_SPAN:
            await self.answers.begin(frames, request, payload)
        elif self._service is None:
            raise ServerFull("this server is loading blocks", retry_after=LOADING_RETRY_S)
        else:
            await self._service.answers.begin(frames, request, payload)

    async def _exchange(self, frames: FrameChannel, request: RecordDigest, digest: bytes) -> None:
        self._enter(self._exchanges, frames)
        await exchange.answer(frames, self._directory, digest, request.fingerprint)

    def _leave(self, request: Leave, peer: PeerId) -> tuple[Leaving, bytes]:
        """The owner's order: whoever dials with this node's own key."""
        if peer != self._me:
            raise IdentityError("only this node's own key orders it to leave")
        self.ordered_to_leave.set()
        return Leaving(DRAIN_S), b""
