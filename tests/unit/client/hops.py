"""Hops that exist only in a test, and a chain of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence

from shoal.client.chain import Chain
from shoal.client.hop import HopControl
from shoal.client.keys import SessionKeys
from shoal.client.options import SessionOptions
from shoal.client.planner import Terms
from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import NoRoute
from shoal.net.dial import Dialler
from shoal.net.framed import FrameChannel
from shoal.net.rowlink import Feed, Inlet
from shoal.swarm.identity import Identity
from shoal.types import Hop, ModelSpec, Span
from shoal.wire.journal import Journal
from shoal.wire.messages import LinkGrant, Numerics, Redirect, Rows
from shoal.wire.stream import Receiver, Sender
from tests.records import FINGERPRINT, signed_record

MODEL = ModelSpec("tiny", FINGERPRINT, 12, 48)
ME = Identity.generate()
EXACT = Numerics("torch", "probe", "float32", exact=True)


def terms_of(**options: object) -> Terms:
    """A session of the client's over all blocks."""
    return Terms(MODEL, Span(0, 12), ME.peer, SessionOptions(max_tokens=100, **options))  # type: ignore[arg-type]


class FakeHop(HopControl):
    """A hop that obeys at once, unless `frozen`; it notes its orders."""

    def __init__(self, span: Span, clock: Clock = SYSTEM_CLOCK, name: str = "") -> None:
        server = Identity.generate()
        record = signed_record(server, name=name)
        super().__init__(Hop(server.peer, span), record, SessionKeys.draw(), Dialler([]), clock)
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
        """HopControl."""
        await self._obey()
        self.admitted.append((link, follow))
        return b"accepted"

    async def redirect(self, order: Redirect) -> None:
        """HopControl."""
        await self._obey()
        self.redirects.append(order)

    async def dial(self) -> FrameChannel:
        """HopControl: nothing comes of it."""
        await asyncio.Event().wait()
        raise AssertionError

    async def run(self, sender: Sender) -> None:
        """HopControl: nobody answers."""
        await asyncio.Event().wait()

    async def ping(self) -> None:
        """HopControl."""
        self.pinged += 1

    async def close(self) -> None:
        """HopControl."""
        self.ended = True

    async def release(self) -> None:
        """HopControl."""
        self.ended = True


class Taker:
    """The client's end, where rows would arrive."""

    def check(self, rows: Rows, payload: bytes) -> None:
        """RowTaker."""

    def truncate(self, position: int) -> None:
        """RowTaker."""

    async def take(self, rows: Rows, payload: bytes, skip: int) -> None:
        """RowTaker."""


def ends_of(terms: Terms) -> tuple[Feed, Inlet]:
    """The client's two ends."""
    return Feed(Journal(terms.row_bytes, 1 << 20)), Inlet(Receiver(), Taker())


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
) -> Chain:
    """A chain that opens `hops`, and then takes of the spares the first that fits."""
    terms = terms_of(**options)
    chain = Chain(terms, NoPlanner(), ends_of(terms), clock)  # type: ignore[arg-type]
    left = list(spares)

    async def open_(span: Span, taken: frozenset[str], broken: object, follow: bool = False) -> list[HopControl]:
        if span == terms.span and not chain.stages:
            return list(hops)
        for spare in left:
            if spare.hop.span == span and spare.peer not in taken:
                left.remove(spare)
                return [spare]
        raise NoRoute(f"nobody for {span}")

    chain.recruiter.open = open_  # type: ignore[method-assign]
    return chain


def generations() -> Iterator[int]:
    """As a chain counts them."""
    return itertools.count(1)
