"""The links of a session: which of them there are, and how they are made, through the client itself if it must be."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any

from shoal.client.session.client_links import Bridge, keep_receiving, keep_sending
from shoal.client.session.hop_client import HopClient
from shoal.client.session.planner import SessionSpec
from shoal.clock import Clock
from shoal.errors import ShoalError
from shoal.links.row_link import RowLog, RowReceiver
from shoal.protocol.messages import SECRET_BYTES, LinkGrant, Redirect
from shoal.types import PeerId

Endpoint = HopClient | None
"""A hop, or (None) the client."""

LinkKey = tuple[Endpoint, Endpoint, bool]
"""From, to, and whether the one who receives only follows."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Link:
    """A link as it was ordered, with this side's tasks for it."""

    def __init__(self, generation: int, since: float, bridged: bool) -> None:
        self.generation = generation
        self.since = since
        self.bridged = bridged
        self.tasks: list[asyncio.Task[None]] = []

    def cut(self) -> None:
        """End this side's part."""
        for task in self.tasks:
            task.cancel()


class LinkTable:
    """`feed` is the client's end towards the first hop, `inlet` that from the last; `broken` are pairs that do not reach
    each other, since when (monotonic seconds), `joining` links that are being made: a hop that does not answer holds up
    its own links only."""

    def __init__(
        self,
        terms: SessionSpec,
        ends: tuple[RowLog, RowReceiver],
        spawn: Spawn,
        generations: Iterator[int],
        clock: Clock,
    ) -> None:
        self.links_up: dict[LinkKey, Link] = {}
        self.broken: dict[tuple[str, str], float] = {}
        self.joining: dict[LinkKey, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._terms = terms
        self._feed, self._inlet = ends
        self._spawn = spawn
        self._generations = generations
        self._clock = clock

    def missing(self, wanted: Iterable[LinkKey]) -> list[LinkKey]:
        """The links that are wanted and not under way; those that are not wanted any more are cut."""
        if self._failure is not None:
            raise self._failure
        wanted = list(wanted)
        for pair in [pair for pair in (*self.links_up, *self.joining) if pair not in wanted]:
            self.cut(pair)
        return [pair for pair in wanted if pair not in self.links_up and pair not in self.joining]

    def cut(self, pair: LinkKey) -> None:
        """Forget a link; it is made anew if it is still wanted."""
        joining = self.joining.pop(pair, None)
        if joining is not None:
            joining.cancel()
        wire = self.links_up.pop(pair, None)
        if wire is not None:
            wire.cut()

    def break_(self, pair: LinkKey) -> None:
        """These two do not reach each other: the next link between them goes through the client."""
        sender, receiver, _ = pair
        if sender is not None and receiver is not None:
            self.broken[sender.peer, receiver.peer] = self._clock.monotonic()
        self.cut(pair)

    def mend(self, pair: LinkKey) -> None:
        """They may reach each other again: the next link between them is direct."""
        sender, receiver, _ = pair
        if sender is not None and receiver is not None:
            self.broken.pop((sender.peer, receiver.peer), None)
        self.cut(pair)

    def join(self, pairs: Iterable[LinkKey], done: Callable[[], None]) -> None:
        """Begin to make links, and call `done` after each; a hop that fails to obey is `lost` then."""
        for pair in pairs:
            self.joining[pair] = task = self._spawn(self._join(pair))
            task.add_done_callback(partial(self._joined, pair, done))

    def _joined(self, pair: LinkKey, done: Callable[[], None], task: asyncio.Task[None]) -> None:
        if self.joining.get(pair) is task:
            del self.joining[pair]
        if not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, ShoalError):
                self._failure = error  # a mistake here: whoever asks next is told
        done()

    async def _join(self, pair: LinkKey) -> None:
        before, after, follow = pair
        bridged = before is not None and after is not None and (before.peer, after.peer) in self.broken
        upstream = before.peer if before is not None and not bridged else self._terms.me
        grant = self._grant(after, upstream)
        wire = Link(grant.generation, self._clock.monotonic(), bridged)
        acceptance = await after.admit(grant, follow) if after is not None else b""
        if before is not None:
            await before.redirect(self._order(grant, after, acceptance, follow, bridged))
        if bridged and before is not None and after is not None:
            self._carry(wire, before, after, grant)
        elif before is None and after is not None:
            outlet = self._feed.follower if follow else self._feed.next
            wire.tasks.append(self._spawn(keep_sending(after, grant, outlet)))
        elif before is not None and after is None:
            wire.tasks.append(self._spawn(keep_receiving(before, grant, self._inlet, self._limit_bytes)))
        self.links_up[pair] = wire

    @property
    def _limit_bytes(self) -> int:
        return self._terms.options.max_tokens * self._terms.row_bytes

    def _grant(self, after: Endpoint, upstream: PeerId) -> LinkGrant:
        first = after.first_grant[0] if after is not None and after.first_grant is not None else None
        if after is not None and first is not None:
            if first.peer == upstream:
                return first
            after.first_grant = None
        peer = upstream if after is not None else self._terms.me
        return LinkGrant(next(self._generations), peer, secrets.token_bytes(SECRET_BYTES))

    def _order(self, grant: LinkGrant, after: Endpoint, acceptance: bytes, follow: bool, bridged: bool) -> Redirect:
        """What the sending hop is told."""
        if after is None or bridged:
            link = LinkGrant(grant.generation, self._terms.me, grant.token)
            return Redirect(link, elide=after is None, follow=follow)
        link = LinkGrant(grant.generation, after.peer, grant.token)
        return Redirect(link, after.record.data, acceptance, follow=follow)

    def _carry(self, wire: Link, before: HopClient, after: HopClient, grant: LinkGrant) -> None:
        bridge = Bridge(self._terms.row_bytes, after.heartbeat.progress.epoch, after.heartbeat.progress.position)
        wire.tasks.append(self._spawn(keep_receiving(before, grant, bridge.inlet, self._limit_bytes)))
        wire.tasks.append(self._spawn(keep_sending(after, grant, bridge.feed.next)))
