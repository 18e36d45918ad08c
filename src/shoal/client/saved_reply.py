"""Sessions and replies as they are kept in a file, so that a later process can take them up."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from shoal.client.client_options import SessionOptions
from shoal.client.session.hop_client import SessionCredentials
from shoal.errors import SessionFenced, UsageError
from shoal.files import read_kept, replace_file
from shoal.model.nn.sampling_params import SamplingParams
from shoal.protocol.messages import Numerics
from shoal.swarm.directory.records import SignedRecord, parse_record
from shoal.swarm.discovery.ticket import Ticket
from shoal.types import Hop, ModelSpec, PeerId, Span

MAX_FILE_BYTES = 64 << 20
SHOWN_CHARACTERS = 60
"""Of a reply's text in its `repr`."""


class SavedHop(msgspec.Struct, frozen=True):
    """A server of the route: its record, its blocks, what opens the session there, and its arithmetic."""

    record: bytes
    span: Span
    keys: SessionCredentials
    numerics: Numerics
    weights: tuple[str, ...]

    def parts(self) -> tuple[Hop, SignedRecord, SessionCredentials]:
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
            msgspec.structs.replace(
                hop, keys=SessionCredentials(hop.keys.session, hop.keys.secret, hop.keys.incarnation + 1)
            )
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

    def __repr__(self) -> str:
        """Without the keys to its session, which are for nobody to see."""
        state = self.finish_reason or "not ended"
        return f"<SavedReply {self.text[:SHOWN_CHARACTERS]!r} {len(self.token_ids)} tokens, {state}>"

    def taken_up(self) -> SavedReply:
        """For the process that goes on: hops obey it, and no longer the one that wrote this."""
        return msgspec.structs.replace(self, session=self.session.taken_up())


def place_for_reply(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a file in which a reply may be kept: one that is not there, is empty, or holds a saved reply.

    Raises UsageError for any other: nothing but a saved reply is ever replaced.
    """
    try:
        place = Path(path).expanduser().resolve()
        if place.exists() and (not place.is_file() or (place.stat().st_size and not _holds_reply(place))):
            raise UsageError(f"{place} is no saved reply, and is not replaced: give another name")
        if not place.parent.is_dir():
            raise UsageError(f"cannot write {place}: there is no folder {place.parent}")
        if not os.access(place.parent, os.W_OK):
            raise UsageError(f"cannot write {place}: no permission for {place.parent}")
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot write {os.fspath(path)!r}: {error}") from error
    return place


def _holds_reply(place: Path) -> bool:
    try:
        read_saved(place)
    except UsageError:
        return False
    return True


def write_saved(path: Path, saved: SavedReply) -> None:
    """Put a reply into a file that only its owner can read; what was there before stays until the new one is whole.

    Raises UsageError where no file can be written.
    """
    try:
        replace_file(path, msgspec.msgpack.encode(saved))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def read_saved(path: str | os.PathLike[str]) -> SavedReply:
    """The reply in a file; raises UsageError when there is none, or it is something else or cut off."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"a saved reply is read from a path, not from a {type(path).__name__}")
    path = Path(path)
    try:
        return msgspec.msgpack.decode(read_kept(path, MAX_FILE_BYTES, "saved reply"), type=SavedReply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no saved reply, or of another version: {error}") from error


def take_up(path: Path, saved: SavedReply) -> SavedReply:
    """The reply for the process that goes on with it, as its file has it from now on.

    One process at a time reads and writes the file here, so no two have the same incarnation. Raises SessionFenced when another
    process is taking the reply up or has done so since it was read, UsageError where no file can be written.
    """
    if not path.parent.is_dir():  # which the lock would make
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        with FileLock(lock_path(path), timeout=0, mode=0o600):
            if path.exists() and read_saved(path).session.resumed != saved.session.resumed:
                raise SessionFenced(f"another process has taken up the reply in {path}")
            mine = saved.taken_up()
            write_saved(path, mine)
            return mine
    except Timeout as error:
        raise SessionFenced(f"another process is taking up the reply in {path} at this moment") from error
    except OSError as error:
        raise UsageError(f"cannot write {lock_path(path)}: {error.strerror}") from error


def lock_path(path: Path) -> Path:
    """What a process locks while it takes up the reply in `path`."""
    return path.with_name(f".{path.name}.lock")
