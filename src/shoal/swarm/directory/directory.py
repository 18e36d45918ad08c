"""The records that a node holds, and how two nodes find out what each other lacks. Pure but for the clock."""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from shoal.clock import Clock
from shoal.errors import ProtocolError, RecordError, ServerFull
from shoal.swarm.directory.records import SignedRecord, verify_record
from shoal.transport.token_bucket import TokenBuckets
from shoal.types import PEER_ID_BYTES, PeerId, peer_id

MAX_RECORDS = 4096

MAX_SOURCES = 4096
"""Sources whose use is counted; beyond that the one that asked longest ago is forgotten."""

MAX_LOOKED_AT_PER_MINUTE = 4096
"""Records of one source that are looked at in a minute: checking one takes about 0.1 ms."""

MAX_NEW_PER_MINUTE = 1024
"""Nodes not known before that one source may bring in a minute, itself aside."""

MAX_EXCHANGES_PER_MINUTE = 120
"""Exchanges that are answered for one peer in a minute; a client that waits for missing blocks asks every second."""

RETRY_AFTER_S = 5.0

_MAX_ENTRIES = 2 * MAX_RECORDS
_SEQUENCE = struct.Struct("<Q")
_LENGTH = struct.Struct("<H")
_ENTRY_BYTES = PEER_ID_BYTES + _SEQUENCE.size


log = logging.getLogger("shoal.swarm")


class Held(NamedTuple):
    """A record, what proves that its node is a member, and who brought it: None if the node itself did, or this one."""

    signed: SignedRecord
    proof: bytes
    source: PeerId | None


def _per_minute(count: int, clock: Clock) -> TokenBuckets[PeerId]:
    """`count` a minute for each source, at once or spread; what was used comes back evenly."""
    return TokenBuckets(count / 60, count, clock, MAX_SOURCES)


class Directory:
    """Verified records by node id; the highest sequence number wins. `dropped` counts what was refused, by cause."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._refuses: Callable[[PeerId], bool] = lambda peer: False
        self._certifies: Callable[[PeerId, bytes], bool] | None = None
        self._held: dict[PeerId, Held] = {}
        self._looked_at = _per_minute(MAX_LOOKED_AT_PER_MINUTE, clock)
        self._new = _per_minute(MAX_NEW_PER_MINUTE, clock)
        self._exchanges = _per_minute(MAX_EXCHANGES_PER_MINUTE, clock)
        self.dropped: Counter[str] = Counter()

    def admit_members_only(
        self, certifies: Callable[[PeerId, bytes], bool], refuses: Callable[[PeerId], bool] = lambda peer: False
    ) -> None:
        """Take no record without bytes by which `certifies` knows its node as a member.

        `refuses`: whose records are neither taken nor given, as those of revoked nodes.
        """
        self._certifies, self._refuses = certifies, refuses

    def begin_exchange(self, peer: PeerId) -> None:
        """Count an exchange that a peer asks for; raises ServerFull when there were too many."""
        if not self._exchanges.try_take(peer):
            self.dropped["too often"] += 1
            raise ServerFull(f"more than {MAX_EXCHANGES_PER_MINUTE} exchanges in a minute", retry_after=RETRY_AFTER_S)

    def take(self, entries: list[bytes], source: PeerId) -> int:
        """Take the records of a `records` message that `source` sent; returns how many were news."""
        if self._certifies is None:
            return sum(self.add(data, source) for data in entries)
        return sum(self.add(data, source, proof) for data, proof in zip(entries[::2], entries[1::2], strict=False))

    def add(self, data: bytes, source: PeerId | None = None, proof: bytes = b"") -> bool:
        """Take a record if it is valid and news; returns whether it was. `source` None: it was made or fetched here."""
        if source is not None and not self._looked_at.try_take(source):
            self.dropped["too many"] += 1
            return False
        try:
            signed = verify_record(data, self._clock.wall())
        except RecordError as error:
            self.dropped["invalid"] += 1
            log.debug("a record is dropped: %s", error)
            return False
        peer = PeerId(signed.record.peer)
        held = self._held.get(peer)
        if held is not None and held.signed.record.sequence >= signed.record.sequence:
            self.dropped["old"] += held.signed.data != data
            return False
        if self._refuses(peer) or (self._certifies is not None and not self._certifies(peer, proof)):
            self.dropped["refused"] += 1
            return False
        source = None if source == peer else source
        if held is None and not self._room(source):
            return False
        first_hand = source is None or (held is not None and held.source is None)
        self._held[peer] = Held(signed, proof, None if first_hand else held.source if held is not None else source)
        if held is None:
            log.info("%s joins with blocks %s of %s", peer[:8], signed.record.span, signed.record.model.name)
        return True

    def _room(self, source: PeerId | None) -> bool:
        """Whether one more node may be held; if need be, the last one goes of those that the busiest source brought."""
        if source is not None and not self._new.try_take(source):
            self.dropped["too many"] += 1
            return False
        if len(self._held) < MAX_RECORDS:
            return True
        self._forget_expired()
        if len(self._held) < MAX_RECORDS:
            return True
        brought = self._brought()
        busiest = max(brought, key=brought.__getitem__, default=None)
        if busiest is None or (source is not None and brought[source] >= brought[busiest]):
            self.dropped["full"] += 1
            return False
        del self._held[next(peer for peer in reversed(self._held) if self._held[peer].source == busiest)]
        self.dropped["evicted"] += 1
        return True

    def _brought(self) -> Counter[PeerId]:
        """How many of the nodes held each source brought."""
        return Counter(held.source for held in self._held.values() if held.source is not None)

    def get(self, peer: PeerId) -> SignedRecord | None:
        """A member's record, if it is held and has not expired."""
        held = self._held.get(peer)
        return held.signed if held is not None and self._usable(peer, held) else None

    def _usable(self, peer: PeerId, held: Held) -> bool:
        return held.signed.record.expires_at > self._clock.wall() and not self._refuses(peer)

    def remove(self, peer: PeerId) -> None:
        """Forget a member, until a newer record of it comes."""
        self._held.pop(peer, None)

    def records(self) -> list[SignedRecord]:
        """All that have not expired, in the order of their node ids; expired ones are forgotten."""
        self._forget_expired()
        return [self._held[peer].signed for peer in sorted(self._held)]

    def _forget_expired(self) -> None:
        self._held = {peer: held for peer, held in self._held.items() if self._usable(peer, held)}

    def digest(self) -> bytes:
        """40 bytes per record: node id and sequence number."""
        return b"".join(
            bytes.fromhex(held.record.peer) + _SEQUENCE.pack(held.record.sequence) for held in self.records()
        )

    def answer(self, digest: bytes) -> tuple[list[PeerId], list[bytes]]:
        """For a peer's digest: the ids whose records it should send, and the records that it lacks.

        Raises ProtocolError for a digest that is malformed or too long.
        """
        theirs = _parse_digest(digest)
        ours = {PeerId(signed.record.peer): signed.record.sequence for signed in self.records()}
        want = [peer for peer, seen in theirs.items() if ours.get(peer, -1) < seen]
        return want, self._entries(peer for peer, seen in ours.items() if theirs.get(peer, -1) < seen)

    def select(self, want: list[PeerId]) -> list[bytes]:
        """The records of these members, as far as they are held."""
        return self._entries(peer for peer in want if self.get(peer) is not None)

    def _entries(self, peers: Iterable[PeerId]) -> list[bytes]:
        """What a `records` message says about these: first of those met, last of those from the busiest source."""
        brought = self._brought()
        held = sorted((self._held[peer] for peer in peers), key=lambda one: brought[one.source] if one.source else 0)
        if self._certifies is None:
            return [one.signed.data for one in held]
        return [entry for one in held for entry in (one.signed.data, one.proof)]


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
