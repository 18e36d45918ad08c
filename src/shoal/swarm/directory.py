"""The records that a node holds, and how two nodes find out what each other lacks. Pure but for the clock."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable

from shoal.clock import Clock
from shoal.errors import ProtocolError, RecordError
from shoal.swarm.records import SignedRecord, verify_record
from shoal.types import PEER_ID_BYTES, PeerId, peer_id

MAX_RECORDS = 4096
_SEQUENCE = struct.Struct("<Q")
_LENGTH = struct.Struct("<H")
_ENTRY_BYTES = PEER_ID_BYTES + _SEQUENCE.size


class Directory:
    """Verified records by node id; the highest sequence number wins. `dropped` counts what was refused, by cause.

    `refuses` says whose records are neither taken nor given: in a private swarm, those of revoked nodes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.refuses: Callable[[PeerId], bool] = lambda peer: False
        self._held: dict[PeerId, SignedRecord] = {}
        self.dropped: Counter[str] = Counter()

    def add(self, data: bytes) -> bool:
        """Take a record if it is valid and news; returns whether it was."""
        try:
            signed = verify_record(data, self._clock.wall())
        except RecordError:
            self.dropped["invalid"] += 1
            return False
        peer = PeerId(signed.record.peer)
        if self.refuses(peer):
            self.dropped["refused"] += 1
            return False
        held = self._held.get(peer)
        if held is not None and held.record.sequence >= signed.record.sequence:
            self.dropped["old"] += held.data != data
            return False
        if held is None and len(self._held) >= MAX_RECORDS:
            self.dropped["full"] += 1
            return False
        self._held[peer] = signed
        return True

    def get(self, peer: PeerId) -> SignedRecord | None:
        """A member's record, if it is held and has not expired."""
        signed = self._held.get(peer)
        if signed is None or self.refuses(peer) or not signed.record.expires_at > self._clock.wall():
            return None
        return signed

    def remove(self, peer: PeerId) -> None:
        """Forget a member, until a newer record of it comes."""
        self._held.pop(peer, None)

    def records(self) -> list[SignedRecord]:
        """All that have not expired, in the order of their node ids; expired ones are forgotten."""
        now = self._clock.wall()
        self._held = {
            peer: held for peer, held in self._held.items() if held.record.expires_at > now and not self.refuses(peer)
        }
        return [self._held[peer] for peer in sorted(self._held)]

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
        ours = {PeerId(held.record.peer): held for held in self.records()}
        want = [peer for peer, seen in theirs.items() if peer not in ours or ours[peer].record.sequence < seen]
        lacks = [held.data for peer, held in ours.items() if theirs.get(peer, -1) < held.record.sequence]
        return want, lacks

    def select(self, want: list[PeerId]) -> list[bytes]:
        """The records of these members, as far as they are held."""
        return [held.data for peer in want if (held := self.get(peer)) is not None]


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
    for data in records[:MAX_RECORDS]:
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
        if at + _LENGTH.size > len(payload) or len(records) == MAX_RECORDS:
            raise ProtocolError("a records message is cut off or too long")
        size = _LENGTH.unpack_from(payload, at)[0]
        at += _LENGTH.size
        if at + size > len(payload):
            raise ProtocolError("a record is cut off")
        records.append(payload[at : at + size])
        at += size
    return ids, records
