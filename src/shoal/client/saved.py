"""Sessions and replies as they are kept in a file, so that a later process can take them up."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

from shoal.client.hop import SessionKeys
from shoal.client.options import SessionOptions
from shoal.errors import UsageError
from shoal.nn.sampling import SamplingParams
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.records import SignedRecord, parse_record
from shoal.types import Hop, ModelSpec, PeerId, Span
from shoal.wire.messages import Numerics

MAX_FILE_BYTES = 64 << 20


class SavedHop(msgspec.Struct, frozen=True):
    """A server of the route: its record, its blocks, what opens the session there, and its arithmetic."""

    record: bytes
    span: Span
    keys: SessionKeys
    numerics: Numerics
    weights: tuple[str, ...]

    def parts(self) -> tuple[Hop, SignedRecord, SessionKeys]:
        """What a control channel needs. Raises RecordError."""
        record = parse_record(self.record)
        return Hop(PeerId(record.record.peer), self.span), record, self.keys


class SavedSession(msgspec.Struct, frozen=True):
    """A session without its rows: they follow from the tokens. `resumed` is how often it was taken up."""

    model: ModelSpec
    span: Span
    options: SessionOptions
    resumed: int
    position: int
    epoch: int
    exact: bool
    hops: tuple[SavedHop, ...]

    def taken_up(self) -> SavedSession:
        """The next incarnation."""
        hops = tuple(
            msgspec.structs.replace(hop, keys=SessionKeys(hop.keys.session, hop.keys.secret, hop.keys.incarnation + 1))
            for hop in self.hops
        )
        return msgspec.structs.replace(self, resumed=self.resumed + 1, hops=hops)


class SavedReply(msgspec.Struct, frozen=True, tag="shoal reply 1"):
    """A reply as far as it has come, and its session. `tickets` reach the swarm; the seed is the one that was drawn.

    `source` is what the client called the model; empty: what the swarm describes.
    """

    source: str
    tickets: tuple[str, ...]
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    seed: int
    params: SamplingParams
    finish_reason: str
    session: SavedSession

    @property
    def fed_ids(self) -> list[int]:
        """The tokens that the session's rows were made from."""
        return (self.prompt_ids + self.token_ids)[: self.session.position]

    @property
    def ways(self) -> list[str]:
        """Tickets: those that the client had, then those of the servers in its route."""
        records = [parse_record(hop.record).record for hop in self.session.hops]
        return [*self.tickets, *(str(Ticket(record.peer, record.addresses)) for record in records)]

    def taken_up(self) -> SavedReply:
        """For the process that goes on: hops obey it, and no longer whoever wrote this."""
        return msgspec.structs.replace(self, session=self.session.taken_up())


def write_saved(path: Path, saved: SavedReply) -> None:
    """Put a reply into a file that only its owner can read; what was there before stays until the new one is whole.

    Raises UsageError where no file can be written.
    """
    data = msgspec.msgpack.encode(saved)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def read_saved(path: Path) -> SavedReply:
    """The reply in a file; raises UsageError when there is none, or it is something else or cut off."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} is no saved reply: it is larger than {MAX_FILE_BYTES >> 20} MB")
        return msgspec.msgpack.decode(path.read_bytes(), type=SavedReply)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no saved reply, or of another version: {error}") from error
