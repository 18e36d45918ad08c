"""What a client finds out about servers by asking them: who answers, how far away, with how much room."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from shoal.clock import Clock
from shoal.errors import NetworkError, NoRoute, ShoalError
from shoal.protocol.messages import STATUS, GetStatus, Status
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import ServerRecord, SignedRecord
from shoal.swarm.routing.hop_costs import RoundTrips
from shoal.transport.asking import ask
from shoal.transport.dialler import DIAL_DEADLINE_S, Dialler
from shoal.types import ModelSpec, PeerId, Span

ASKED_AT_ONCE = 32
ANSWER_S = 1.0
"""Servers that are asked before a route is planned, and how long they may take: a dead one costs a session no more."""

FRESH_S = 30.0
"""How long an answer is good for."""

CAUGHT_S = 600.0
"""How long a server that was caught comes after all others, ..."""

CAUGHT_ROWS = 1 << 32
"""... as if so many rows waited there."""


class Answer(NamedTuple):
    """What a server said, when (monotonic seconds), and the round trip of that question."""

    status: Status
    at: float
    round_trip_s: float


class Failure(NamedTuple):
    """The record that a server had when it did not answer, and when that was (seconds since the Unix epoch)."""

    sequence: int
    at: float


class ServerProbe:
    """A directory's records, corrected by what their servers answer."""

    def __init__(self, directory: Directory, dialler: Dialler, clock: Clock, rng: random.Random | None = None) -> None:
        self._directory = directory
        self._dialler = dialler
        self._clock = clock
        self._rng = rng or random.Random()
        self._answers: dict[str, Answer] = {}
        self._failures: dict[str, Failure] = {}
        self._caught: dict[str, float] = {}

    async def ask(self, record: ServerRecord, deadline_s: float = DIAL_DEADLINE_S) -> Status:
        """A server's load now; raises what the dial raises, NetworkError when no answer comes."""
        peer, contact = PeerId(record.peer), (record.peer, record.addresses)
        try:
            reply = await ask(self._dialler, contact, STATUS, GetStatus(), deadline_s=deadline_s, clock=self._clock)
        except NetworkError:
            self.failed(record)
            raise
        self._answers[peer] = Answer(reply.message, self._clock.monotonic(), reply.round_trip_s)
        self._failures.pop(peer, None)
        return reply.message

    async def look(self, model: ModelSpec, span: Span) -> None:
        """Ask servers of these blocks that have not answered lately; those that do not answer now are `failed`."""
        since = self._clock.monotonic() - FRESH_S
        unknown = [
            record
            for record in self._servers(model)
            if record.span.start < span.stop
            and span.start < record.span.stop
            and (record.peer not in self._answers or self._answers[record.peer].at < since)
        ]
        await self._ask_some(unknown)

    async def retry(self) -> None:
        """Ask those who failed whether they are back."""
        records = [signed.record for signed in self._directory.records()]
        await self._ask_some([record for record in records if self._has_failed(record)])

    async def _ask_some(self, records: list[ServerRecord]) -> None:
        chosen = self._rng.sample(records, min(ASKED_AT_ONCE, len(records)))
        results = await asyncio.gather(*(self.ask(record, ANSWER_S) for record in chosen), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ShoalError):
                raise result

    def failed(self, record: ServerRecord) -> None:
        """The server of this record did not answer: it is in no new route until it does, or says something new."""
        if not self._has_failed(record):
            self._failures[record.peer] = Failure(record.sequence, self._clock.wall())

    def caught(self, record: ServerRecord) -> None:
        """The server of this record did not do what it says it does: for a while others come first, whatever it says."""
        self._caught[record.peer] = self._clock.monotonic()

    def _was_caught(self, record: ServerRecord) -> bool:
        since = self._caught.get(record.peer)
        return since is not None and self._clock.monotonic() - since < CAUGHT_S

    def _has_failed(self, record: ServerRecord) -> bool:
        """A record from before the failure says nothing, even if it arrives after it."""
        failure = self._failures.get(record.peer)
        return failure is not None and (record.sequence <= failure.sequence or record.issued_at <= failure.at)

    def _servers(self, model: ModelSpec) -> Iterable[ServerRecord]:
        for signed in self._directory.records():
            record = signed.record
            if record.model.fingerprint == model.fingerprint and not self._has_failed(record):
                yield record

    def candidates(self, model: ModelSpec) -> tuple[list[ServerRecord], RoundTrips]:
        """Records of a model's servers that did not fail, with the load that they told last, and the round trips to them."""
        measured = {PeerId(peer): answer.round_trip_s for peer, answer in self._answers.items()}
        return [self._corrected(record) for record in self._servers(model)], measured

    def _corrected(self, record: ServerRecord) -> ServerRecord:
        if self._was_caught(record):
            return msgspec.structs.replace(record, queued_rows=CAUGHT_ROWS)
        answer = self._answers.get(record.peer)
        if answer is None or self._clock.monotonic() - answer.at > FRESH_S:
            return record
        status = answer.status
        return msgspec.structs.replace(record, free_tokens=status.free_tokens, queued_rows=status.queued_rows)

    def record(self, peer: PeerId) -> SignedRecord:
        """A server's record as it was signed; raises NoRoute when it has expired."""
        signed = self._directory.get(peer)
        if signed is None:
            raise NoRoute(f"the record of {peer[:8]} has expired")
        return signed
