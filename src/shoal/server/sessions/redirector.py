"""A hop's outgoing link: dial the next hop as the client says, send, and dial again when it breaks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any, NamedTuple

from shoal.clock import Clock
from shoal.errors import NetworkError, RecordError, ServerFull, ShoalError
from shoal.links.row_link import RowSender
from shoal.protocol.messages import MAX_TEXT_CHARS, Attach, LinkGrant, LinkState, Redirect
from shoal.server.sessions.hop_session import HopSession
from shoal.swarm.directory.records import verify_acceptance, verify_record
from shoal.swarm.identity import Identity
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId

MAX_DIALS_PER_MINUTE = 600
"""Dials that one client's redirects may cause in a minute, redials included: ten new sessions a second;
beyond that its links go through the client."""

REDIAL_FIRST_S = 0.05
REDIAL_MOST_S = 2.0


class _Target(NamedTuple):
    """A next hop, and the id by which it knows the session."""

    peer: PeerId
    addresses: tuple[str, ...]
    session: bytes


class Redirector:
    """Runs the outgoing links of all sessions."""

    def __init__(self, identity: Identity, dialler: Dialler, clock: Clock) -> None:
        self.clock = clock
        self._identity = identity
        self._dialler = dialler
        self._tasks: set[asyncio.Task[None]] = set()
        self._dials: dict[PeerId, deque[float]] = {}

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in a task that this object keeps."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End all links."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def redirect(self, session: HopSession, message: Redirect) -> None:
        """Send this session's output where the client says, from now on.

        Raises RecordError when the target did not agree, or for a generation that is older than the present one.
        """
        line = session.follower if message.follow else session.next
        link, current = message.link, line.grant
        if current is not None and link.generation < current.generation:
            raise RecordError(f"link generation {link.generation} is older than {current.generation}")
        target = None if link.peer == session.owner else self._agreed(message)
        line.cut()
        line.grant = link
        line.outlet.elide = message.elide and target is None
        line.outlet.on_gone = lambda position: session.report(
            LinkState(link.generation, "gone", "the journal has dropped these rows", position)
        )
        if not message.follow:
            session.wake_up()
        session.report(LinkState(link.generation, "ready"))
        if target is not None:
            line.task = self.spawn(self._keep(session, line.outlet, link, target))

    def _agreed(self, message: Redirect) -> _Target:
        """Where to dial: the target has signed its addresses, and that this node may feed that session of it."""
        now = self.clock.wall()
        record = verify_record(message.record, now).record
        acceptance = verify_acceptance(message.acceptance, now)
        agreed = (acceptance.peer, acceptance.upstream, acceptance.generation)
        wanted = (message.link.peer, self._identity.peer, message.link.generation)
        if record.peer != message.link.peer or agreed != wanted:
            raise RecordError(f"{message.link.peer[:8]} did not agree to be fed by this hop")
        return _Target(PeerId(record.peer), record.addresses, acceptance.session)

    async def _keep(self, session: HopSession, outlet: RowSender, link: LinkGrant, target: _Target) -> None:
        """Keep the link up until it is replaced or the session ends."""
        wait_s = REDIAL_FIRST_S
        while not session.closed.is_set():
            try:
                async with await self._dial(session, link, target) as channel:
                    session.report(LinkState(link.generation, "up"))
                    wait_s = REDIAL_FIRST_S
                    await outlet.serve(channel)
            except ShoalError as error:
                session.report(LinkState(link.generation, "down", str(error)[:MAX_TEXT_CHARS]))
                if not isinstance(error, NetworkError | ServerFull):
                    return  # the peer refused: only the client can change that
            await self.clock.sleep(wait_s)
            wait_s = min(2 * wait_s, REDIAL_MOST_S)

    async def _dial(self, session: HopSession, link: LinkGrant, target: _Target) -> FrameChannel:
        self._count_dial(session)
        channel = FrameChannel(await self._dialler.dial(target.peer, target.addresses))
        await channel.send(Attach("send", target.session, 0, link.token, link.generation))
        return channel

    def _count_dial(self, session: HopSession) -> None:
        now = self.clock.monotonic()
        owner = session.owner or PeerId("")
        self._dials = {peer: dials for peer, dials in self._dials.items() if dials and dials[-1] > now - 60}
        dials = self._dials.setdefault(owner, deque())
        while dials and dials[0] <= now - 60:
            dials.popleft()
        if len(dials) >= MAX_DIALS_PER_MINUTE:
            raise ServerFull(f"more than {MAX_DIALS_PER_MINUTE} dials a minute for one client", 60 + dials[0] - now)
        dials.append(now)
