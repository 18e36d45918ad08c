"""A session's control channel, the server's side."""

from __future__ import annotations

import asyncio

from shoal.errors import NetworkError, ProtocolError
from shoal.protocol.messages import (
    SESSION,
    Admit,
    Admitted,
    Close,
    Leaving,
    LinkGrant,
    LinkState,
    Message,
    Numerics,
    Opened,
    Ping,
    Redirect,
    Rewind,
)
from shoal.protocol.refusals import refusal
from shoal.server.sessions.hop_session import HopSession, as_shoal_error
from shoal.server.sessions.redirector import Redirector
from shoal.swarm.directory.records import ACCEPTANCE_LIFETIME_S, Acceptance, sign_acceptance
from shoal.swarm.identity import Identity
from shoal.tasks import first_done
from shoal.transport.frame_channel import FrameChannel


class ControlChannel:
    """Carries the client's orders for one session, and this hop's news back."""

    def __init__(self, frames: FrameChannel, session: HopSession, identity: Identity, redirector: Redirector) -> None:
        self._frames = frames
        self._session = session
        self._identity = identity
        self._redirector = redirector
        self._clock = redirector.clock

    def _accept(self, grant: LinkGrant) -> bytes:
        session = self._session
        session.admit(grant)
        expires_at = self._clock.wall() + ACCEPTANCE_LIFETIME_S
        acceptance = Acceptance(session.terms.session, self._identity.peer, grant.peer, grant.generation, expires_at)
        return sign_acceptance(acceptance, self._identity)

    def opened(self, upstream: LinkGrant, numerics: Numerics, weights: tuple[str, ...]) -> Opened:
        """What the client is told that it was granted; `upstream` may feed this hop from now on."""
        session, terms = self._session, self._session.terms
        return Opened(
            terms.max_tokens,
            terms.lease_s,
            session.receiver.epoch,
            session.receiver.position,
            terms.journal_tokens,
            numerics,
            self._accept(upstream),
            weights,
        )

    async def serve(self, *first: Message) -> bool:
        """Say what comes first, and obey until the channel ends; returns whether the client closed the session."""
        session = self._session
        news = session.attend(self._frames)
        session.renew()
        try:
            for message in first:
                await self._frames.send(message)
            ended, closed = await first_done(self._obey(), self._report(news), session.closed.wait())
            if session.failure is not None:
                await self._frames.send(refusal(as_shoal_error(session.failure)))
            return ended == 0 and closed
        except NetworkError:
            return False
        finally:
            session.unattend(self._frames)

    async def _obey(self) -> bool:
        while True:
            message, _ = await self._frames.receive(SESSION)
            received_at = self._clock.wall()
            if isinstance(message, Close):
                return True
            if isinstance(message, Ping):
                self._session.renew()
                await self._frames.send(self._session.pong(message.id, received_at))
            else:
                await self._order(message)
            await self._frames.idle_words.take(1)

    async def _order(self, message: Message) -> None:
        session = self._session
        if isinstance(message, Rewind):
            session.on_rewind(message)
        elif isinstance(message, Admit):
            acceptance = self._accept(message.link)
            if message.follow:
                session.stand_by()
            await self._frames.send(Admitted(message.link.generation, acceptance))
        elif isinstance(message, Redirect):
            self._redirector.redirect(session, message, self._frames.source)
        else:
            raise ProtocolError(f"a control channel does not carry {type(message).__name__}")

    async def _report(self, news: asyncio.Queue[LinkState | Leaving]) -> None:
        while True:
            await self._frames.send(await news.get())
