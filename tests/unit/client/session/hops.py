"""Hops that exist only in a test, and a supervisor of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence

from shoal.client.client_options import SessionOptions
from shoal.client.session.hop_client import HopClient, SessionCredentials
from shoal.client.session.planner import SessionSpec
from shoal.client.session.supervisor import RouteSupervisor
from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import ShoalError
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.protocol.journal import Journal
from shoal.protocol.messages import LinkGrant, Numerics, Open, Redirect, RowsFrame
from shoal.protocol.row_stream import Receiver, Sender
from shoal.swarm.directory.records import ServerRecord, SignedRecord
from shoal.swarm.identity import Identity
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.types import Hop, ModelSpec, PeerId, Span
from tests.records import FINGERPRINT, signed_record

MODEL = ModelSpec("tiny", FINGERPRINT, 12, 48)
ME = Identity.generate()
EXACT = Numerics("torch", "probe", "float32", exact=True)


def terms_of(**options: object) -> SessionSpec:
    """A session of the client's over all blocks."""
    return SessionSpec(MODEL, Span(0, 12), ME.peer, SessionOptions(max_tokens=100, **options))  # type: ignore[arg-type]


class FakeHop(HopClient):
    """A hop that obeys at once, unless `frozen` or `refusal`; it notes its orders."""

    def __init__(self, span: Span, clock: Clock = SYSTEM_CLOCK, numerics: Numerics = EXACT) -> None:
        server = Identity.generate()
        record = signed_record(server, span=span, numerics=EXACT.key)
        super().__init__(Hop(server.peer, span), record, SessionCredentials.draw(), Dialler([]), clock, self._stir)
        self.numerics, self.weights = numerics, ("w",) * len(span)
        self.on_change: Callable[[], None] = lambda: None
        self.frozen = False
        self.refusal: ShoalError | None = None
        self.admitted: list[tuple[LinkGrant, bool]] = []
        self.redirects: list[Redirect] = []
        self.asked = self.pinged = 0
        self.ended = False

    def _stir(self) -> None:
        self.on_change()

    async def _obey(self) -> None:
        self.asked += 1
        if self.lost is not None:
            raise self.lost
        if self.frozen:
            await asyncio.Event().wait()

    async def open(self, request: Open, sender: Sender) -> None:
        """HopClient."""
        if self.refusal is not None:
            raise self.refusal
        self.opened = True

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


class FakePlanner:
    """Knows the hops that a test has shown it, except those that failed."""

    dialler = Dialler([])

    def __init__(self, known: Sequence[FakeHop]) -> None:
        self.known = list(known)
        self.failures: list[str] = []
        self.liars: list[str] = []
        self.refreshed = 0

    def candidates(self, model: ModelSpec) -> tuple[list[ServerRecord], dict[PeerId, float]]:
        """Planner."""
        return [hop.record.record for hop in self.known if hop.peer not in self.failures], {}

    def record(self, peer: PeerId) -> SignedRecord:
        """Planner."""
        return self.hop(peer).record

    def hop(self, peer: PeerId) -> FakeHop:
        """The hop at a server."""
        return next(hop for hop in self.known if hop.peer == peer)

    async def refresh(self) -> None:
        """Planner."""
        self.refreshed += 1

    def failed(self, record: ServerRecord) -> None:
        """Planner."""
        self.failures.append(record.peer)

    def caught(self, record: ServerRecord) -> None:
        """Planner."""
        self.liars.append(record.peer)


class FakeSupervisor(RouteSupervisor):
    """A supervisor whose hops are a test's."""

    def __init__(self, hops: Sequence[FakeHop], clock: Clock = SYSTEM_CLOCK, **options: object) -> None:
        terms = terms_of(**options)
        self.planner = FakePlanner(hops)
        self.told = 0
        super().__init__(terms, self.planner, ends_of(terms), clock, self._tell)

    def _tell(self) -> None:
        self.told += 1

    def client(self, hop: Hop, record: SignedRecord, keys: SessionCredentials | None = None) -> FakeHop:
        """RouteSupervisor."""
        fake = self.planner.hop(hop.peer)
        fake.on_change = self.stir
        return fake

    @property
    def names(self) -> list[str]:
        """The servers of the route."""
        return [hop.peer for hop in self.hops]


def generations() -> Iterator[int]:
    """As a chain counts them."""
    return itertools.count(1)
