"""What a client finds out about servers by asking them: who answers, how far away, with how much room."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
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
from shoal.types import ModelSpec, PeerId, Span, missing_spans

ASKED_AT_ONCE = 32
ANSWER_S = 1.0
"""Servers that are asked before a route is planned, and how long they may take: a dead one costs a session no more."""

MOST_ASKED = 4 * ASKED_AT_ONCE
"""How many are asked in all, one lot after the other, until one has answered."""

LOOK_S = 2.5
"""How long servers are asked, one lot after the other, while some blocks have none that answers."""

FRESH_S = 30.0
"""How long an answer is good for."""

CAUGHT_S = 600.0
"""How long a server that was caught comes after all others, ..."""

CAUGHT_ROWS = 1 << 32
"""... as if so many rows waited there."""


class Answer(NamedTuple):
    """What a server said, when (monotonic seconds), the round trip of that question, and at which address it answered."""

    status: Status
    at: float
    round_trip_s: float
    addresses: tuple[str, ...]


class Failure(NamedTuple):
    """The record that a server had when it did not answer, and when that was (seconds since the Unix epoch)."""

    sequence: int
    at: float


class ServerProbe:
    """A directory's records, corrected by what their servers answer. Those in `vouchers` are asked first."""

    def __init__(
        self,
        directory: Directory,
        dialler: Dialler,
        clock: Clock,
        vouchers: frozenset[str] = frozenset(),
        rng: random.Random | None = None,
    ) -> None:
        self._directory = directory
        self._dialler = dialler
        self._clock = clock
        self._vouchers = vouchers
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
        self._directory.answered(peer)
        answered_at = tuple(self._dialler.narrowed(peer, record.addresses))
        self._answers[peer] = Answer(reply.message, self._clock.monotonic(), reply.round_trip_s, answered_at)
        self._failures.pop(peer, None)
        return reply.message

    async def look(self, model: ModelSpec, span: Span) -> None:
        """Ask servers of these blocks that have not answered lately; those that do not answer now are `failed`.

        The first are those that a ticket names and those that the directory ranks first. More are asked, by chance, while
        blocks have no server that answers, for no longer than LOOK_S.
        """
        began = self._clock.monotonic()
        unknown = [record for record in self._near(model, span) if not self._has_answered_lately(record)]
        for some in self.batches(unknown, most=len(unknown)):
            await self._ask_all(some)
            held = [record.span for record in self._near(model, span) if self._has_answered_lately(record)]
            if not missing_spans(span, held) or self._clock.monotonic() - began >= LOOK_S:
                return

    def _near(self, model: ModelSpec, span: Span) -> list[ServerRecord]:
        """Servers of these blocks that have not failed."""
        return [one for one in self._servers(model) if one.span.start < span.stop and span.start < one.span.stop]

    def _has_answered_lately(self, record: ServerRecord) -> bool:
        answer = self._answers.get(record.peer)
        return answer is not None and self._clock.monotonic() - answer.at < FRESH_S

    def batches(
        self, records: Sequence[ServerRecord], at_once: int = ASKED_AT_ONCE, most: int = MOST_ASKED
    ) -> Iterator[list[ServerRecord]]:
        """Whom to ask of these until it is enough, `most` in all: those that a ticket names and the first, then by chance."""
        vouched = [record for record in records if record.peer in self._vouchers]
        ordered = [*vouched, *(record for record in records if record.peer not in self._vouchers)]
        first, rest = ordered[:at_once], self._rng.sample(ordered[at_once:], max(0, min(most, len(ordered)) - at_once))
        for at in range(0, len(ordered[:most]), at_once):
            yield [*first, *rest][at : at + at_once]

    async def answering(self, records: Sequence[ServerRecord]) -> list[ServerRecord]:
        """Those of these servers that answer now; of many, of ASKED_AT_ONCE by chance."""
        some = self._rng.sample(records, min(len(records), ASKED_AT_ONCE))
        await self._ask_all(some)
        return [record for record in some if not self._has_failed(record)]

    async def retry(self) -> None:
        """Ask those who failed whether they are back."""
        failed = [signed.record for signed in self._directory.records() if self._has_failed(signed.record)]
        await self._ask_all(self._rng.sample(failed, min(ASKED_AT_ONCE, len(failed))))

    async def _ask_all(self, records: Sequence[ServerRecord]) -> None:
        results = await asyncio.gather(*(self.ask(record, ANSWER_S) for record in records), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ShoalError):
                raise result

    def failed(self, record: ServerRecord) -> None:
        """The server of this record did not answer: it is in no new route until it does, or says something new."""
        self._directory.silent(PeerId(record.peer))
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
        for signed in self._directory.ranked(model.fingerprint):
            record = signed.record
            if record.model.checkpoint == model.checkpoint and not self._has_failed(record):
                yield record

    def candidates(self, model: ModelSpec) -> tuple[list[ServerRecord], RoundTrips]:
        """Records of a model's servers that did not fail, with the load that they told last, and the round trips to them.

        Of one that has answered, with the address at which it did: the others are what it says of itself.
        """
        # Who answered: see `select`.
        measured = {PeerId(peer): answer.round_trip_s for peer, answer in self._answers.items()}
        return [self._corrected(record) for record in self._servers(model)], measured

    def _corrected(self, record: ServerRecord) -> ServerRecord:
        answer = self._answers.get(record.peer)
        if answer is not None:
            record = msgspec.structs.replace(record, addresses=answer.addresses)
        if self._was_caught(record):
            return msgspec.structs.replace(record, queued_rows=CAUGHT_ROWS)
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
