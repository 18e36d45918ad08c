"""The records that a node holds, and how two nodes find out what each other lacks. Pure but for the clock and for chance."""

from __future__ import annotations

import logging
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple, TypeVar

from shoal.clock import Clock
from shoal.errors import ProtocolError, RecordError, ServerFull
from shoal.swarm.directory.records import MAX_TOLD_SKEW_S, SignedRecord, check_times, parse_record
from shoal.transport.token_bucket import TokenBuckets
from shoal.types import PEER_ID_BYTES, PeerId, peer_id

MAX_RECORDS = 4096

MAX_SOURCES = 4096
"""Sources whose use is counted; beyond that the one that asked longest ago is forgotten."""

MAX_LOOKED_AT_PER_MINUTE = 4096
"""Records of one introducer that are looked at in a minute: checking one takes about 0.1 ms."""

MAX_LOOKED_AT_PER_SOURCE = 4 * MAX_LOOKED_AT_PER_MINUTE
"""The same for all introducers of one source: keys are free, and many nodes may share an address."""

MAX_NEW_PER_MINUTE = 1024
"""Nodes not known before that one source may tell of in a minute, and how many may come from it themselves."""

MAX_EXCHANGES_PER_MINUTE = 120
"""Exchanges that are answered for one peer in a minute; a client that waits for missing blocks asks every second."""

MAX_EXCHANGES_PER_SOURCE = 20 * MAX_EXCHANGES_PER_MINUTE
"""The same for all peers of one source."""

FEW_SILENT = 4
"""So many silent nodes of a source say nothing of its others yet: servers come and go."""

MAX_DOUBTFUL = 64
"""Nodes whose records were dropped and whose reason is kept."""

RETRY_AFTER_S = 5.0

_MAX_ENTRIES = 2 * MAX_RECORDS
_SEQUENCE = struct.Struct("<Q")
_LENGTH = struct.Struct("<H")
_ENTRY_BYTES = PEER_ID_BYTES + _SEQUENCE.size


log = logging.getLogger("shoal.swarm")

V = TypeVar("V")


class Standing(IntEnum):
    """What a node has shown beside its record, the most first: it answered a dial, it came itself, others told of it, or it
    did not answer."""

    ANSWERED = 0
    CAME = 1
    HEARSAY = 2
    SILENT = 3


class Held(NamedTuple):
    """A record, what proves that its node is a member, the source that introduced the node ("": this one), its standing.

    `ahead_s` is how far the clock of the record's times is ahead of this node's.
    """

    signed: SignedRecord
    proof: bytes
    source: str
    standing: Standing
    ahead_s: float = 0.0


class _Limits:
    """What each introducer and each source may bring in a minute, at once or spread; what was used comes back evenly."""

    def __init__(self, clock: Clock) -> None:
        def per_minute(count: int) -> TokenBuckets[str]:
            return TokenBuckets(count / 60, count, clock, MAX_SOURCES)

        self.looked_at = per_minute(MAX_LOOKED_AT_PER_MINUTE), per_minute(MAX_LOOKED_AT_PER_SOURCE)
        self.exchanges = per_minute(MAX_EXCHANGES_PER_MINUTE), per_minute(MAX_EXCHANGES_PER_SOURCE)
        self.told_of = per_minute(MAX_NEW_PER_MINUTE)
        self.came = per_minute(MAX_NEW_PER_MINUTE)

    @staticmethod
    def try_take(buckets: tuple[TokenBuckets[str], TokenBuckets[str]], introducer: PeerId, source: str) -> bool:
        """Whether both may do it once more."""
        return buckets[0].try_take(introducer) and buckets[1].try_take(source)


class Directory:
    """Verified records by node id; the highest sequence number wins. `dropped` counts what was refused, by cause.

    Room is shared by *source*: the network from which a node came or was told of (an IPv4 address, an IPv6 /64), or the
    introducer's id where that is not known, or where keys are not free. `me` is this node, if it has a record of its own.
    """

    def __init__(self, clock: Clock, me: PeerId | None = None, rng: random.Random | None = None) -> None:
        self._clock = clock
        self._me = me
        self._rng = rng or random.Random()
        self._refuses: Callable[[PeerId], bool] = lambda peer: False
        self._certifies: Callable[[PeerId, bytes], bool] | None = None
        self._held: dict[PeerId, Held] = {}
        self._introduced: Counter[str] = Counter()
        self._limits = _Limits(clock)
        self._doubtful: dict[PeerId, SignedRecord] = {}
        self._problems: dict[PeerId, str] = {}
        self.dropped: Counter[str] = Counter()

    @property
    def now(self) -> float:
        """What this node's clock shows."""
        return self._clock.wall()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why records were dropped that nodes told of themselves, and those whose times cannot be; the latest MAX_DOUBTFUL."""
        return tuple(self._problems.values())

    def problem(self, peer: PeerId) -> str | None:
        """Why a node's own record was dropped, if it was and none was taken since."""
        return self._problems.get(peer)

    @property
    def doubtful(self) -> list[SignedRecord]:
        """Records of others whose times cannot be: their nodes can say what their clocks show."""
        return list(self._doubtful.values())

    def admit_members_only(
        self, certifies: Callable[[PeerId, bytes], bool], refuses: Callable[[PeerId], bool] = lambda peer: False
    ) -> None:
        """Take no record without bytes by which `certifies` knows its node as a member.

        `refuses`: whose records are neither taken nor given, as those of revoked nodes.
        """
        self._certifies, self._refuses = certifies, refuses

    def begin_exchange(self, peer: PeerId, network: str = "") -> None:
        """Count an exchange that a peer asks for: it is there. Raises ServerFull when there were too many."""
        if not self._limits.try_take(self._limits.exchanges, peer, self._source(peer, network)):
            self.dropped["too often"] += 1
            raise ServerFull(f"more than {MAX_EXCHANGES_PER_MINUTE} exchanges in a minute", retry_after=RETRY_AFTER_S)
        if self._is(peer, Standing.SILENT):
            self._stand(peer, Standing.CAME)

    def _source(self, introducer: PeerId, network: str) -> str:
        """What counts as one: a network, since keys are free, or a member of a private swarm, where they cost an invite."""
        return network if network and self._certifies is None else introducer

    def take(
        self, entries: list[bytes], introducer: PeerId, network: str = "", sent_at: float = 0.0, believed: bool = False
    ) -> int:
        """Take the records of a `records` message that `introducer` sent from `network`; returns how many were news.

        `sent_at` is what its clock shows: its own record is as old as that says. So are the others' if it is `believed`, as a
        node that was dialled from here.
        """
        ahead_s = sent_at - self._clock.wall() if sent_at else 0.0
        step = 1 if self._certifies is None else 2
        count = 0
        for at in range(0, len(entries) - step + 1, step):
            proof = entries[at + 1] if step == 2 else b""
            count += self.add(entries[at], introducer, proof, network, ahead_s, believed)
        return count

    def add(
        self,
        data: bytes,
        introducer: PeerId | None = None,
        proof: bytes = b"",
        network: str = "",
        ahead_s: float = 0.0,
        believed: bool = False,
    ) -> bool:
        """Take a record if it is valid and news; returns whether it was. `introducer` None: it was made here."""
        source = "" if introducer is None else self._source(introducer, network)
        if introducer is not None and not self._limits.try_take(self._limits.looked_at, introducer, source):
            self.dropped["too many"] += 1
            return False
        try:
            signed = parse_record(data)
        except RecordError as error:
            self._drop(introducer, error)
            return False
        peer = PeerId(signed.record.peer)
        held = self._held.get(peer)
        if held is not None and held.signed.record.sequence >= signed.record.sequence:
            self.dropped["old"] += held.signed.data != data
            return False
        if self._refuses(peer) or (self._certifies is not None and not self._certifies(peer, proof)):
            self.dropped["refused"] += 1
            return False
        came = introducer in (None, peer)
        told_s = ahead_s if abs(ahead_s) <= MAX_TOLD_SKEW_S else 0.0
        # Its own clock is what it goes by in all that it signs; that of an introducer is a guess.
        offset_s = self._offset_s(signed, (told_s, 0.0) if came else (0.0, told_s if believed else 0.0))
        if offset_s is None:
            if not came:
                _keep_latest(self._doubtful, peer, signed)
            return False
        if held is None and introducer is not None and not self._room(source, came):
            return False
        standing = Standing.CAME if came else Standing.HEARSAY
        self._put(peer, _renewed(held, Held(signed, proof, source, standing, offset_s)))
        self._doubtful.pop(peer, None)
        self._problems.pop(peer, None)
        if held is None:
            who = f"{signed.record.name} ({peer[:8]})" if signed.record.name else peer[:8]
            log.info("%s joins with blocks %s of %s", who, signed.record.span, signed.record.model.name)
        return True

    def _offset_s(self, signed: SignedRecord, offsets_s: tuple[float, ...]) -> float | None:
        """The first of these differences of clocks by which a record's times are sound; None: by none of them."""
        now, problem = self._clock.wall(), None
        for offset_s in dict.fromkeys(offsets_s):
            try:
                check_times(signed.record, now + offset_s)
                return offset_s
            except RecordError as error:
                problem = error
        assert problem is not None
        self._drop(PeerId(signed.record.peer), problem)
        return None

    def _drop(self, owner: PeerId | None, error: RecordError) -> None:
        self.dropped["invalid"] += 1
        if owner is not None:
            _keep_latest(self._problems, owner, str(error))
        log.debug("a record is dropped: %s", error)

    def _room(self, source: str, came: bool) -> bool:
        """Whether one more node of a source may be held; if need be, another one goes."""
        if not (self._limits.came if came else self._limits.told_of).try_take(source):
            self.dropped["too many"] += 1
            return False
        if len(self._held) < MAX_RECORDS:
            return True
        self._forget_expired()
        if len(self._held) < MAX_RECORDS:
            return True
        victim = self._least(source)
        if victim is None:
            self.dropped["full"] += 1
            return False
        self.remove(victim)
        self.dropped["evicted"] += 1
        return True

    def _least(self, source: str) -> PeerId | None:
        """Who goes for one more node of `source`: one that does not answer, else one of the source that has the most room.

        The source that has the most gets no room of others. Of equals the last one goes.
        """
        share = dict(self._introduced)
        most = max(share.values(), default=0)
        alone = share.get(source, 0) >= most
        worst: tuple[bool, int, int] | None = None
        victim = None
        for peer in reversed(self._held):
            held = self._held[peer]
            silent = held.standing is Standing.SILENT
            if not held.source or (alone and not (silent and held.source == source)):
                continue
            if silent or share[held.source] == most:
                key = (silent, share[held.source], held.standing)
                if worst is None or key > worst:
                    worst, victim = key, peer
        return victim

    def _put(self, peer: PeerId, held: Held) -> None:
        before = self._held.get(peer)
        if before is not None:
            self._forget_source(before.source)
        if held.source:
            self._introduced[held.source] += 1
        self._held[peer] = held

    def _forget_source(self, source: str) -> None:
        if source:
            self._introduced[source] -= 1
            if not self._introduced[source]:
                del self._introduced[source]

    def answered(self, peer: PeerId) -> None:
        """A node has answered when it was dialled."""
        self._stand(peer, Standing.ANSWERED)

    def silent(self, peer: PeerId) -> None:
        """A node did not answer when it was dialled: it counts least, until it answers or comes itself."""
        self._stand(peer, Standing.SILENT)

    def _stand(self, peer: PeerId, standing: Standing) -> None:
        held = self._held.get(peer)
        if held is not None:
            self._held[peer] = held._replace(standing=standing)

    def get(self, peer: PeerId) -> SignedRecord | None:
        """A member's record, if it is held and has not expired."""
        held = self._held.get(peer)
        return held.signed if held is not None and self._usable(peer, held) else None

    def _usable(self, peer: PeerId, held: Held) -> bool:
        return held.signed.record.expires_at - held.ahead_s > self._clock.wall() and not self._refuses(peer)

    def ahead_s(self, peer: PeerId) -> float:
        """How far a node's clock is ahead of this one's, as far as that matters for its record; 0 where it is not known."""
        held = self._held.get(peer)
        return held.ahead_s if held is not None else 0.0

    def remove(self, peer: PeerId) -> None:
        """Forget a member, until a newer record of it comes."""
        held = self._held.pop(peer, None)
        if held is not None:
            self._forget_source(held.source)

    def records(self) -> list[SignedRecord]:
        """All that have not expired, in the order of their node ids; expired ones are forgotten."""
        self._forget_expired()
        return [self._held[peer].signed for peer in sorted(self._held)]

    def ranked(self, fingerprint: str = "", by_chance: bool = False) -> list[SignedRecord]:
        """All that have not expired, in the order in which they are worth a dial.

        This node's own comes first, then those of a model. Among these, nodes stand by what they have shown, and sources take
        turns. A source's own stand as they arrived, or by chance.
        """
        self._forget_expired()
        return [self._held[peer].signed for peer in self._ranked(list(self._held), fingerprint, by_chance)]

    def _ranked(self, peers: list[PeerId], fingerprint: str, by_chance: bool) -> list[PeerId]:
        if by_chance:
            self._rng.shuffle(peers)
        turns: Counter[tuple[bool, Standing, str]] = Counter()
        ranks: dict[PeerId, tuple[bool, bool, Standing, int, int]] = {}
        for peer in peers:
            held = self._held[peer]
            other = held.signed.record.model.fingerprint != fingerprint
            turn = turns[other, held.standing, held.source]
            turns[other, held.standing, held.source] += 1
            ranks[peer] = (peer != self._me, other, held.standing, turn, self._introduced[held.source])
        return sorted(peers, key=ranks.__getitem__)

    def believed(self) -> list[SignedRecord]:
        """Those of `records` that count as there, as far as this node can tell.

        Who was silent does not count until it answers or comes itself, whatever it signs meanwhile. Of a source most of
        whose nodes were silent only those count that have answered: a name costs nothing.
        """
        shown: Counter[str] = Counter()
        silent: Counter[str] = Counter()
        records = self.records()
        for held in self._held.values():
            shown[held.source] += (held.standing is Standing.ANSWERED) - (held.standing is Standing.SILENT)
            silent[held.source] += held.standing is Standing.SILENT

        def counts(held: Held) -> bool:
            if held.standing in (Standing.ANSWERED, Standing.SILENT) or not held.source:
                return held.standing is not Standing.SILENT
            return shown[held.source] >= 0 or silent[held.source] < FEW_SILENT

        return [signed for signed in records if counts(self._held[PeerId(signed.record.peer)])]

    def has_answered(self, peer: str) -> bool:
        """Whether a node answered when it was dialled last."""
        return self._is(PeerId(peer), Standing.ANSWERED)

    def was_silent(self, peer: str) -> bool:
        """Whether a node did not answer when it was dialled last, and has not come since."""
        return self._is(PeerId(peer), Standing.SILENT)

    def _is(self, peer: PeerId, standing: Standing) -> bool:
        held = self._held.get(peer)
        return held is not None and held.standing is standing

    def _forget_expired(self) -> None:
        for peer in [peer for peer, held in self._held.items() if not self._usable(peer, held)]:
            self.remove(peer)

    def digest(self) -> bytes:
        """40 bytes per record: node id and sequence number."""
        return b"".join(
            bytes.fromhex(held.record.peer) + _SEQUENCE.pack(held.record.sequence) for held in self.records()
        )

    def answer(self, digest: bytes, fingerprint: str = "") -> tuple[list[PeerId], list[bytes]]:
        """For a peer's digest: the ids whose records it should send, and the records that it lacks, as `ranked` by chance.

        `fingerprint` is of the model that the peer is after. Raises ProtocolError for a digest that is malformed or too long.
        """
        theirs = _parse_digest(digest)
        ours = {PeerId(signed.record.peer): signed.record.sequence for signed in self.records()}
        want = [peer for peer, seen in theirs.items() if ours.get(peer, -1) < seen]
        lacks = [peer for peer, seen in ours.items() if theirs.get(peer, -1) < seen]
        return want, self._entries(self._ranked(lacks, fingerprint, by_chance=True))

    def select(self, want: list[PeerId]) -> list[bytes]:
        """The records of these members, as far as they are held; this node's own first."""
        held = [peer for peer in dict.fromkeys(want) if self.get(peer) is not None]
        return self._entries(self._ranked(held, "", by_chance=False))

    def _entries(self, peers: Iterable[PeerId]) -> list[bytes]:
        """What a `records` message says about these."""
        held = [self._held[peer] for peer in peers]
        if self._certifies is None:
            return [one.signed.data for one in held]
        return [entry for one in held for entry in (one.signed.data, one.proof)]


def _keep_latest(found: dict[PeerId, V], peer: PeerId, value: V) -> None:
    """Note something of a node, and forget the oldest of too many."""
    found.pop(peer, None)
    found[peer] = value
    if len(found) > MAX_DOUBTFUL:
        del found[next(iter(found))]


def _renewed(before: Held | None, now: Held) -> Held:
    """What is held after a newer record of a node: a word of others changes neither its source nor its standing."""
    if before is None:
        return now
    if not now.source or not before.source:  # this node's own
        return now
    if now.standing is Standing.HEARSAY:
        return now._replace(source=before.source, standing=before.standing)
    return now._replace(standing=min(now.standing, before.standing))


def _parse_digest(digest: bytes) -> dict[PeerId, int]:
    if len(digest) % _ENTRY_BYTES or len(digest) > MAX_RECORDS * _ENTRY_BYTES:
        raise ProtocolError(f"a digest of {len(digest)} bytes is not up to {MAX_RECORDS} entries of {_ENTRY_BYTES}")
    entries = range(0, len(digest), _ENTRY_BYTES)
    return {
        peer_id(digest[at : at + PEER_ID_BYTES]): _SEQUENCE.unpack_from(digest, at + PEER_ID_BYTES)[0] for at in entries
    }


def pack_records(want: list[PeerId], records: list[bytes], limit_bytes: int) -> bytes:
    """The payload of a `records` message: ids, then length-prefixed records, as many as fit into the limit."""
    payload = bytearray(b"".join(bytes.fromhex(peer) for peer in want))
    for data in records[:_MAX_ENTRIES]:
        if len(payload) + _LENGTH.size + len(data) > limit_bytes:
            break
        payload += _LENGTH.pack(len(data)) + data
    return bytes(payload)


def unpack_records(want: int, payload: bytes) -> tuple[list[PeerId], list[bytes]]:
    """The ids and records of a `records` payload; raises ProtocolError when it is malformed."""
    at = want * PEER_ID_BYTES
    if at > len(payload):
        raise ProtocolError(f"a records message names {want} nodes in {len(payload)} bytes")
    ids = [peer_id(payload[i : i + PEER_ID_BYTES]) for i in range(0, at, PEER_ID_BYTES)]
    records: list[bytes] = []
    while at < len(payload):
        if at + _LENGTH.size > len(payload) or len(records) == _MAX_ENTRIES:
            raise ProtocolError("a records message is cut off or too long")
        size = _LENGTH.unpack_from(payload, at)[0]
        at += _LENGTH.size
        if at + size > len(payload):
            raise ProtocolError("a record is cut off")
        records.append(payload[at : at + size])
        at += size
    return ids, records
