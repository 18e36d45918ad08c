"""Round trips to the servers that are likely to come next on a route: what clients cannot measure themselves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from shoal.clock import Clock
from shoal.errors import ShoalError
from shoal.protocol.messages import STATUS, GetStatus
from shoal.swarm.directory.records import MAX_ROUND_TRIPS, ServerRecord
from shoal.transport.asking import ask
from shoal.transport.dialler import Dialler
from shoal.transport.reach import dialled_for_others
from shoal.types import PeerId, Span

MEASURED_AT_ONCE = 2 * MAX_ROUND_TRIPS
TIMEOUT_S = 3.0


class PeerLatency:
    """Keeps what was measured last; the nearest are told to the swarm.

    `own` gives this server's addresses, which say where it dials because of a record alone.
    """

    def __init__(self, dialler: Dialler, clock: Clock, own: Callable[[], Sequence[str]] | None = None) -> None:
        self._dialler = dialler
        self._own = own
        self._clock = clock
        self._random = random.Random()
        self._seconds: dict[PeerId, float] = {}

    @property
    def round_trips(self) -> tuple[tuple[PeerId, float], ...]:
        """(node, seconds) of the nearest, at most MAX_ROUND_TRIPS."""
        nearest = sorted((seconds, peer) for peer, seconds in self._seconds.items())[:MAX_ROUND_TRIPS]
        return tuple((peer, round(seconds, 6)) for seconds, peer in nearest)

    async def measure(self, span: Span, records: Sequence[ServerRecord]) -> None:
        """Ask those that hold the block after `span`: the nearest so far, and others by chance."""
        next_ = [one for one in records if not one.draining and one.span.start <= span.stop < one.span.stop]
        self._random.shuffle(next_)
        nearest = dict(self.round_trips)
        next_.sort(key=lambda one: one.peer not in nearest)  # stable: those by chance stay shuffled
        chosen = next_[:MEASURED_AT_ONCE]
        measured = await asyncio.gather(*(self._round_trip(one) for one in chosen))
        self._seconds = {
            PeerId(one.peer): seconds for one, seconds in zip(chosen, measured, strict=True) if seconds is not None
        }

    async def _round_trip(self, record: ServerRecord) -> float | None:
        """Seconds from a question to its answer on a connection that is there; None if there is none."""
        try:
            addresses = record.addresses if self._own is None else dialled_for_others(record.addresses, self._own())
            contact = (record.peer, addresses)
            reply = await ask(self._dialler, contact, STATUS, GetStatus(), deadline_s=TIMEOUT_S, clock=self._clock)
        except ShoalError:
            return None
        return reply.round_trip_s
