"""Hops that exist only in a test, and a chain of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence

from shoal.client.options import SessionOptions
from shoal.client.session.hop_client import HopClient
from shoal.client.session.planner import SessionSpec
from shoal.client.session.session_credentials import SessionCredentials
from shoal.client.session.supervisor import RouteSupervisor
from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import NoRoute
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.protocol.journal import Journal
from shoal.protocol.messages import LinkGrant, Numerics, Redirect, RowsFrame
from shoal.protocol.row_stream import Receiver, Sender
from shoal.swarm.identity import Identity
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.types import Hop, ModelSpec, Span
from tests.records import FINGERPRINT, signed_record

MODEL = ModelSpec("tiny", FINGERPRINT, 12, 48)
ME = Identity.generate()
EXACT = Numerics("torch", "probe", "float32", exact=True)


def terms_of(**options: object) -> SessionSpec:
    """A session of the client's over all blocks."""
    return SessionSpec(MODEL, Span(0, 12), ME.peer, SessionOptions(max_tokens=100, **options))  # type: ignore[arg-type]


class FakeHop(HopClient):
    """A hop that obeys at once, unless `frozen`; it notes its orders."""

    def __init__(self, span: Span, clock: Clock = SYSTEM_CLOCK, name: str = "") -> None:
        server = Identity.generate()
        record = signed_record(server, name=name)
        super().__init__(Hop(server.peer, span), record, SessionCredentials.draw(), Dialler([]), clock)
        self.numerics, self.weights = EXACT, ("w",) * len(span)
        self.frozen = False
        self.admitted: list[tuple[LinkGrant, bool]] = []
        self.redirects: list[Redirect] = []
        self.asked = self.pinged = 0
        self.ended = False

    async def _obey(self) -> None:
        self.asked += 1
        if self.lost is not None:
            raise self.lost
        if self.frozen:
            await asyncio.Event().wait()

    async def admit(self, link: LinkGrant, follow: bool) -> bytes:
        """HopClient."""
        await self._obey()
        self.admitted.append((link, follow))
        return b"accepted"

    async def redirect(self, order: Redirect) -> None:
        """HopClient."""
        await self._obey()
        self.redirects.append(order)

    async def dial(self) -> FrameChannel:
        """HopClient: nothing comes of it."""
        await asyncio.Event().wait()
        raise AssertionError

    async def run(self, sender: Sender) -> None:
        """HopClient: nobody answers."""
        await asyncio.Event().wait()

    async def ping(self) -> None:
        """HopClient."""
        self.pinged += 1

    async def close(self) -> None:
        """HopClient."""
        self.ended = True

    async def release(self) -> None:
        """HopClient."""
        self.ended = True


class Taker:
    """The client's end, where rows would arrive."""

    full = False

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """RowSink."""

    def truncate(self, position: int) -> None:
        """RowSink."""

    def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """RowSink."""


def ends_of(terms: SessionSpec) -> tuple[RowLog, RowReceiver]:
    """The client's two ends."""
    return RowLog(Journal(terms.row_bytes, 1 << 20)), RowReceiver(Receiver(), Taker())


class NoPlanner:
    """A planner that is not asked: hops come from the test."""

    dialler = Dialler([])

    def route(self, *_: object) -> list[object]:
        """Planner."""
        raise NoRoute("nobody")

    async def refresh(self) -> None:
        """Planner."""

    def failed(self, record: object) -> None:
        """Planner."""


def chain_of(
    hops: Sequence[FakeHop], spares: Sequence[FakeHop] = (), clock: Clock = SYSTEM_CLOCK, **options: object
) -> RouteSupervisor:
    """A chain that opens `hops`, and then takes of the spares the first that fits."""
    terms = terms_of(**options)
    supervisor = RouteSupervisor(terms, NoPlanner(), ends_of(terms), clock)  # type: ignore[arg-type]
    left = list(spares)

    async def open_(span: Span, taken: frozenset[str], broken: object, follow: bool = False) -> list[HopClient]:
        if span == terms.span and not supervisor.stages:
            return list(hops)
        for spare in left:
            if spare.hop.span == span and spare.peer not in taken:
                left.remove(spare)
                return [spare]
        raise NoRoute(f"nobody for {span}")

    supervisor.selector.open = open_  # type: ignore[method-assign]
    return supervisor


def generations() -> Iterator[int]:
    """As a chain counts them."""
    return itertools.count(1)
