"""The links of a session: which of them there are, and how they are made, through the client itself if it must be."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial

from shoal.client.session.hop_client import HopClient
from shoal.client.session.planner import SessionSpec
from shoal.clock import Clock
from shoal.errors import ShoalError
from shoal.links.bridge import Bridge
from shoal.links.link import Endpoint, Link, LinkKey, Spawn
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.links.row_sender import RowSender
from shoal.protocol.messages import SECRET_BYTES, Attach, LinkGrant, Redirect
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId

Hops = LinkKey[HopClient]


class ClientLink(Link[HopClient]):
    """A link as the client ordered it; `bridged` when it goes through the client."""

    def __init__(self, key: Hops, generation: int, clock: Clock, bridged: bool) -> None:
        super().__init__(key, generation, clock)
        self.bridged = bridged


class LinkTable:
    """The links of a session, as the client orders them and keeps up its own ends.

    `ends` are the client's log towards the first hop and its receiver from the last. `broken` are pairs that do not reach
    each other, and since when (monotonic seconds). `joining` are links that are being made: a hop that does not answer holds
    up its own links only.
    """

    def __init__(
        self,
        terms: SessionSpec,
        ends: tuple[RowLog, RowReceiver],
        spawn: Spawn,
        generations: Iterator[int],
        clock: Clock,
    ) -> None:
        self.links_up: dict[Hops, ClientLink] = {}
        self.broken: dict[tuple[str, str], float] = {}
        self.joining: dict[Hops, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._terms = terms
        log, self._row_receiver = ends
        self._senders = {False: log.next, True: log.add_sender()}
        self._spawn = spawn
        self._generations = generations
        self._clock = clock

    def missing(self, wanted: Iterable[Hops]) -> list[Hops]:
        """The links that are wanted and not under way; those that are not wanted any more are cut."""
        if self._failure is not None:
            raise self._failure
        wanted = list(wanted)
        for pair in [pair for pair in (*self.links_up, *self.joining) if pair not in wanted]:
            self.cut(pair)
        return [pair for pair in wanted if pair not in self.links_up and pair not in self.joining]

    def cut(self, pair: Hops) -> None:
        """Forget a link; it is made anew if it is still wanted."""
        joining = self.joining.pop(pair, None)
        if joining is not None:
            joining.cancel()
        link = self.links_up.pop(pair, None)
        if link is not None:
            link.cut()

    def break_(self, pair: Hops) -> None:
        """These two do not reach each other: the next link between them goes through the client."""
        sender, receiver, _ = pair
        if sender is not None and receiver is not None:
            self.broken[sender.peer, receiver.peer] = self._clock.monotonic()
        self.cut(pair)

    def mend(self, pair: Hops) -> None:
        """They may reach each other again: the next link between them is direct."""
        sender, receiver, _ = pair
        if sender is not None and receiver is not None:
            self.broken.pop((sender.peer, receiver.peer), None)
        self.cut(pair)

    def join(self, pairs: Iterable[Hops], done: Callable[[], None]) -> None:
        """Begin to make links, and call `done` after each; a hop that fails to obey is `lost` then."""
        for pair in pairs:
            self.joining[pair] = task = self._spawn(self._join(pair))
            task.add_done_callback(partial(self._joined, pair, done))

    def _joined(self, pair: Hops, done: Callable[[], None], task: asyncio.Task[None]) -> None:
        if self.joining.get(pair) is task:
            del self.joining[pair]
        if not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, ShoalError):
                self._failure = error  # a mistake here: whoever asks next is told
        done()

    async def _join(self, pair: Hops) -> None:
        before, after, follow = pair
        bridged = before is not None and after is not None and (before.peer, after.peer) in self.broken
        upstream = before.peer if before is not None and not bridged else self._terms.me
        grant = self._grant(after, upstream)
        link = ClientLink(pair, grant.generation, self._clock, bridged)
        acceptance = await after.admit(grant, follow) if after is not None else b""
        if before is not None:
            await before.redirect(self._order(grant, after, acceptance, follow, bridged))
        if bridged and before is not None and after is not None:
            progress = after.heartbeat.progress
            bridge = Bridge(self._terms.row_bytes, progress.epoch, progress.position)
            link.start(self._spawn, self._receive(link, before, grant, bridge.row_receiver))
            link.start(self._spawn, self._send(link, after, grant, bridge.log.next))
        elif before is None and after is not None:
            link.start(self._spawn, self._send(link, after, grant, self._senders[follow]))
        elif before is not None and after is None:
            link.start(self._spawn, self._receive(link, before, grant, self._row_receiver))
        self.links_up[pair] = link

    async def _send(self, link: ClientLink, hop: HopClient, grant: LinkGrant, sender: RowSender) -> None:
        """Feed a hop until the link is cut."""

        async def serve(frames: FrameChannel) -> None:
            await frames.send(Attach("send", hop.keys.session, 0, grant.token, grant.generation))
            await sender.serve(frames)

        await _keep_up(link, hop, serve)

    async def _receive(self, link: ClientLink, hop: HopClient, grant: LinkGrant, receiver: RowReceiver) -> None:
        """Take a hop's output until the link is cut."""

        async def serve(frames: FrameChannel) -> None:
            have = receiver.attach(frames)
            frames.allow_payload(self._limit_bytes)
            session = hop.keys.session
            await frames.send(Attach("receive", session, 0, grant.token, grant.generation, have.epoch, have.position))
            await receiver.serve(frames)

        await _keep_up(link, hop, serve)

    @property
    def _limit_bytes(self) -> int:
        return self._terms.options.max_tokens * self._terms.row_bytes

    def _grant(self, after: Endpoint[HopClient], upstream: PeerId) -> LinkGrant:
        first = after.first_grant[0] if after is not None and after.first_grant is not None else None
        if after is not None and first is not None:
            if first.peer == upstream:
                return first
            after.first_grant = None
        peer = upstream if after is not None else self._terms.me
        return LinkGrant(next(self._generations), peer, secrets.token_bytes(SECRET_BYTES))

    def _order(
        self, grant: LinkGrant, after: Endpoint[HopClient], acceptance: bytes, follow: bool, bridged: bool
    ) -> Redirect:
        """What the sending hop is told."""
        if after is None or bridged:
            link = LinkGrant(grant.generation, self._terms.me, grant.token)
            return Redirect(link, elide=after is None, follow=follow)
        link = LinkGrant(grant.generation, after.peer, grant.token)
        return Redirect(link, after.record.data, acceptance, follow=follow)


async def _keep_up(link: ClientLink, hop: HopClient, serve: Callable[[FrameChannel], Awaitable[None]]) -> None:
    """A hop that refuses is lost; one that cannot be reached is its control channel's affair."""

    async def dial() -> FrameChannel:
        if hop.lost is not None:
            raise hop.lost
        return await hop.dial()

    try:
        await link.keep_up(dial, serve)
    except ShoalError as error:
        hop.fail(error)
