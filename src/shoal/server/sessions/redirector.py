"""A hop's outgoing link: dial the next hop as the client says, send, and dial again when it breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, NamedTuple

from shoal.clock import Clock
from shoal.errors import NetworkError, RecordError, ServerFull, ShoalError
from shoal.links.link import Link, LinkKey
from shoal.protocol.messages import Attach, LinkState, Redirect
from shoal.server.sessions.hop_session import HopSession, OutgoingLink
from shoal.swarm.directory.records import verify_acceptance, verify_record
from shoal.swarm.identity import Identity
from shoal.tasks import OwnedTasks
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.token_bucket import TokenBuckets
from shoal.types import PeerId

log = logging.getLogger("shoal.server.links")

DIALS_AT_ONCE = 600
DIALS_PER_S = 10
"""Dials that one client's redirects may cause at once, and how many more each second, redials included. Beyond that the
client's links go through the client."""

MAX_CLIENTS = 4096
"""Clients whose dials are counted; beyond that the one whose last dial is the oldest is forgotten."""


class _Target(NamedTuple):
    """A next hop, and the id by which it knows the session."""

    peer: PeerId
    addresses: tuple[str, ...]
    session: bytes


class Redirector:
    """Runs the outgoing links of all sessions. Use with `async with`, which ends them all."""

    def __init__(self, identity: Identity, dialler: Dialler, clock: Clock) -> None:
        self.clock = clock
        self._identity = identity
        self._dialler = dialler
        self._tasks = OwnedTasks()
        self._dials: TokenBuckets[PeerId] = TokenBuckets(DIALS_PER_S, DIALS_AT_ONCE, clock, MAX_CLIENTS)

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

    def redirect(self, session: HopSession, message: Redirect) -> None:
        """Send this session's output where the client says, from now on.

        Raises RecordError when the target did not agree, or for a generation that is older than the present one.
        """
        grant, current = message.link, session.outgoing.get(message.follow)
        if current is not None and grant.generation < current.grant.generation:
            raise RecordError(f"link generation {grant.generation} is older than {current.grant.generation}")
        target = None if grant.peer == session.owner else self._agreed(message)
        key: LinkKey[PeerId] = LinkKey(self._identity.peer, target.peer if target is not None else None, message.follow)
        link = Link(key, grant.generation, self.clock, session.report, retried=(NetworkError, ServerFull))
        outgoing = session.send_along(link, grant, elide=message.elide and target is None)
        session.report(LinkState(grant.generation, "ready"))
        if target is not None:
            link.start(self.spawn, self._keep_up(session, outgoing, target))

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

    async def _keep_up(self, session: HopSession, outgoing: OutgoingLink, target: _Target) -> None:
        """Dial the target and send to it until the link is cut. A target that refuses is the client's to replace."""

        async def dial() -> FrameChannel:
            self._count_dial(session.owner or PeerId(""))
            channel = FrameChannel(await self._dialler.dial(target.peer, target.addresses))
            await channel.send(Attach("send", target.session, 0, outgoing.grant.token, outgoing.grant.generation))
            return channel

        try:
            await outgoing.link.keep_up(dial, lambda frames: session.serve_link(outgoing, frames))
        except ShoalError as error:
            log.info("session %s: %s does not take rows: %s", session.key[:8], target.peer[:8], error)

    def _count_dial(self, client: PeerId) -> None:
        dials = self._dials.of(client)
        if not dials.try_take():
            raise ServerFull(f"more than {DIALS_AT_ONCE} dials at once for one client", dials.wait_s())


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("a session's link failed")
