"""A hop's outgoing link: dial the next hop as the client says, send, and dial again when it breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from shoal.clock import Clock
from shoal.errors import DialError, NetworkError, RecordError, ServerFull, ShoalError
from shoal.links.link import Link, LinkKey
from shoal.protocol.messages import Attach, LinkState, Redirect
from shoal.server.sessions.dial_limits import DialLimits, TooManyDials
from shoal.server.sessions.hop_session import HopSession, OutgoingLink
from shoal.swarm.directory.records import verify_acceptance, verify_record
from shoal.swarm.identity import Identity
from shoal.tasks import OwnedTasks
from shoal.transport.channel import Channel
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.reach import dialled_for_others
from shoal.types import PeerId

FAILED_DIAL_S = 1.75
"""How long a dial for a client takes that fails, whatever the cause: a port that is shut, or is no node's, fails at once, and
one that is not there when the dial's time is over (DIAL_DEADLINE_S). A client could tell them apart."""

log = logging.getLogger("shoal.server.links")


class _Target(NamedTuple):
    """A next hop, and the id by which it knows the session."""

    peer: PeerId
    addresses: tuple[str, ...]
    session: bytes


class Redirector:
    """Runs the outgoing links of all sessions. Use with `async with`, which ends them all.

    `own` gives this server's own addresses: what it dials for clients depends on them. `ahead_s` tells how far a node's clock
    is ahead, as far as that is known.
    """

    def __init__(
        self,
        identity: Identity,
        dialler: Dialler,
        clock: Clock,
        own: Callable[[], Sequence[str]] = tuple,
        ahead_s: Callable[[PeerId], float] = lambda peer: 0.0,
    ) -> None:
        self.clock = clock
        self._identity = identity
        self._dialler = dialler
        self._tasks = OwnedTasks()
        self._own = own
        self._ahead_s = ahead_s
        self.dials = DialLimits(clock)

    async def __aenter__(self) -> Redirector:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in a task that ends with this object; a mistake in it ends nothing else."""
        return self._tasks.start(_logged(work))

    def redirect(self, session: HopSession, message: Redirect, source: str = "") -> None:
        """Send this session's output where the client says, from now on. The client comes from `source`.

        Raises RecordError when the target did not agree, or for a generation that is older than the present one.
        """
        grant, current = message.link, session.outgoing.get(message.follow)
        if current is not None and grant.generation < current.grant.generation:
            raise RecordError(f"link generation {grant.generation} is older than {current.grant.generation}")
        target = None if grant.peer == session.owner else self._agreed(message)
        key: LinkKey[PeerId] = LinkKey(self._identity.peer, target.peer if target is not None else None, message.follow)
        link = Link(key, grant.generation, self.clock, session.report, (NetworkError, ServerFull), _told)
        outgoing = session.send_along(link, grant, elide=message.elide and target is None)
        session.report(LinkState(grant.generation, "ready"))
        if target is not None:
            link.start(self.spawn, self._keep_up(session, outgoing, target, source))

    def _agreed(self, message: Redirect) -> _Target:
        """Where to dial: the target has signed its addresses, and that this node may feed that session of it."""
        now = self.clock.wall()
        now += self._ahead_s(PeerId(message.link.peer))
        record = verify_record(message.record, now).record
        acceptance = verify_acceptance(message.acceptance, now)
        agreed = (acceptance.peer, acceptance.upstream, acceptance.generation)
        wanted = (message.link.peer, self._identity.peer, message.link.generation)
        if record.peer != message.link.peer or agreed != wanted:
            raise RecordError(f"{message.link.peer[:8]} did not agree to be fed by this hop")
        return _Target(PeerId(record.peer), record.addresses, acceptance.session)

    async def _dial(self, peer: PeerId, addresses: Sequence[str]) -> Channel:
        """As the dialler does; a dial that fails takes as long as any other."""
        began = self.clock.monotonic()
        try:
            return await self._dialler.dial(peer, addresses)
        except ShoalError:
            await self.clock.sleep(max(0.0, began + FAILED_DIAL_S - self.clock.monotonic()))
            raise

    async def _keep_up(self, session: HopSession, outgoing: OutgoingLink, target: _Target, source: str) -> None:
        """Dial the target and send to it until the link is cut. A target that refuses is the client's to replace."""

        async def dial() -> FrameChannel:
            addresses = dialled_for_others(target.addresses, self._own())
            if not addresses:
                raise DialError(f"{target.peer[:8]} has no address that this server dials for others")
            self.dials.begin(session.owner or PeerId(""), source)
            channel = FrameChannel(await self._dial(target.peer, addresses))
            self.dials.answered(source)
            await channel.send(Attach("send", target.session, 0, outgoing.grant.token, outgoing.grant.generation))
            return channel

        try:
            await outgoing.link.keep_up(dial, lambda frames: session.serve_link(outgoing, frames))
        except ShoalError as error:
            log.info("session %s: %s does not take rows: %s", session.key[:8], target.peer[:8], error)


def _told(error: ShoalError) -> str:
    """What a client hears of a dial that has failed: nothing, but for this server's own limits. The cause would be a scan's."""
    return str(error) if isinstance(error, TooManyDials) else ""


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("a session's link failed")
