"""The links of a session: which of them there are, and how they are made, through the client itself if it must be."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator

from shoal.client.session.hop_client import HopClient
from shoal.client.session.link_watch import LinkWatch
from shoal.client.session.planner import SessionSpec
from shoal.client.session.stream_check import StreamCheck
from shoal.clock import Clock
from shoal.errors import RecordError, ShoalError
from shoal.links.bridge import Bridge
from shoal.links.link import Endpoint, Link, LinkKey, Spawn
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.links.row_sender import RowSender
from shoal.protocol.messages import SECRET_BYTES, Attach, LinkGrant, Redirect, RowsFrame
from shoal.protocol.rows import RowForm
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId

Hops = LinkKey[HopClient]


class LinkTable:
    """The links of a session, as the client orders them and keeps up its own ends.

    `ends` are the client's log towards the first hop and its receiver from the last. `joining` are links that are being made:
    a hop that does not answer holds up its own links only.
    """

    def __init__(
        self,
        terms: SessionSpec,
        ends: tuple[RowLog, RowReceiver],
        spawn: Spawn,
        generations: Iterator[int],
        clock: Clock,
    ) -> None:
        self.links_up: dict[Hops, Link[HopClient]] = {}
        self.joining: dict[Hops, asyncio.Task[None]] = {}
        self.watches: dict[Hops, LinkWatch] = {}
        self._terms = terms
        log, self._row_receiver = ends
        self._stream = StreamCheck(log.sender)
        self._senders = {False: log.next, True: log.add_sender()}
        self._spawn = spawn
        self._generations = generations
        self._clock = clock

    def cut(self, pair: Hops) -> None:
        """Forget a link, and end this side's part of it."""
        joining = self.joining.pop(pair, None)
        if joining is not None:
            joining.cancel()
        self.watches.pop(pair, None)
        link = self.links_up.pop(pair, None)
        if link is not None:
            link.cut()

    def join(self, pair: Hops, bridged: bool, done: Callable[[], None]) -> None:
        """Begin to make a link, `bridged`: through the client, and call `done` after it. A hop that does not obey is `lost`."""
        self.joining[pair] = self._spawn(self._joined(pair, bridged, done))

    async def _joined(self, pair: Hops, bridged: bool, done: Callable[[], None]) -> None:
        try:
            with contextlib.suppress(ShoalError):  # the hop's loss says what was wrong
                await self._join(pair, bridged)
        finally:
            if self.joining.get(pair) is asyncio.current_task():
                del self.joining[pair]
            done()

    async def _join(self, pair: Hops, bridged: bool) -> None:
        before, after, follow = pair
        upstream = before.peer if before is not None and not bridged else self._terms.me
        grant = self._grant(after, upstream)
        link = Link(pair, grant.generation, self._clock)
        acceptance = await after.admit(grant, follow) if after is not None else b""
        if before is not None:
            await self._redirect(before, after, self._order(grant, after, acceptance, follow, bridged))
        if bridged and before is not None and after is not None:
            bridge = self._bridge(after)
            watch = self._watch(pair, bridge.row_receiver)
            link.start(self._spawn, self._receive(link, before, grant, bridge.row_receiver, watch))
            link.start(self._spawn, self._send(link, after, grant, bridge.log.next, watch))
        elif before is None and after is not None:
            watch = self._watch(pair, self._row_receiver)
            link.start(self._spawn, self._send(link, after, grant, self._senders[follow], watch))
        elif before is not None and after is None:
            watch = self._watch(pair, self._row_receiver)
            link.start(self._spawn, self._receive(link, before, grant, self._row_receiver, watch))
        self.links_up[pair] = link

    async def _redirect(self, before: HopClient, after: Endpoint[HopClient], order: Redirect) -> None:
        """Tell a hop where its output goes; where it cannot go because of what the next one signed, that one is at fault."""
        try:
            await before.redirect(order)
        except RecordError:
            if after is not None and order.acceptance:
                after.check_acceptance(order.acceptance, before.peer, order.link.generation)
            raise

    def _bridge(self, after: HopClient) -> Bridge:
        """From where the next hop says it is; only rows that it could compute pass."""
        terms, stream, progress = self._terms, self._stream, after.heartbeat.progress
        form = RowForm(terms.options.row_codec, terms.model.hidden_size)

        def check(rows: RowsFrame, payload: bytes) -> None:
            form.check_for_hop(rows, payload)
            stream.rows(rows)

        return Bridge(form.row_bytes, progress.epoch, progress.position, check, stream.resumed)

    def _watch(self, pair: Hops, receiver: RowReceiver) -> LinkWatch:
        self.watches[pair] = watch = LinkWatch(pair, receiver.receiver, self._clock)
        return watch

    async def _send(
        self, link: Link[HopClient], hop: HopClient, grant: LinkGrant, sender: RowSender, watch: LinkWatch
    ) -> None:
        """Feed a hop until the link is cut."""

        async def serve(frames: FrameChannel) -> None:
            await frames.send(Attach("send", hop.keys.session, 0, grant.token, grant.generation))
            watch.attached("send")
            await sender.serve(frames)

        await _keep_up(link, hop, serve)

    async def _receive(
        self, link: Link[HopClient], hop: HopClient, grant: LinkGrant, receiver: RowReceiver, watch: LinkWatch
    ) -> None:
        """Take a hop's output until the link is cut."""

        async def serve(frames: FrameChannel) -> None:
            have = receiver.attach(frames)
            frames.allow_payload(self._limit_bytes)
            session = hop.keys.session
            await frames.send(Attach("receive", session, 0, grant.token, grant.generation, have.epoch, have.position))
            watch.attached("receive")
            await receiver.serve(frames)

        await _keep_up(link, hop, serve)

    @property
    def _limit_bytes(self) -> int:
        return self._terms.options.max_tokens * self._terms.row_bytes

    def _grant(self, after: Endpoint[HopClient], upstream: PeerId) -> LinkGrant:
        first = after.first_grant(upstream) if after is not None else None
        if first is not None:
            return first
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


async def _keep_up(link: Link[HopClient], hop: HopClient, serve: Callable[[FrameChannel], Awaitable[None]]) -> None:
    """A hop that refuses is lost; one that cannot be reached is its control channel's affair."""

    async def dial() -> FrameChannel:
        if hop.lost is not None:
            raise hop.lost
        return await hop.dial()

    try:
        await link.keep_up(dial, serve)
    except ShoalError as error:
        await hop.link_refused(error)
