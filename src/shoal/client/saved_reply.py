"""Sessions and replies as they are kept in a file, so that a later process can take them up."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

from shoal.client.client_options import SessionOptions
from shoal.client.session.hop_client import SessionCredentials
from shoal.errors import SessionFenced, UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.protocol.messages import Numerics
from shoal.swarm.directory.records import SignedRecord, parse_record
from shoal.swarm.discovery.ticket import Ticket
from shoal.types import Hop, ModelSpec, PeerId, Span

MAX_FILE_BYTES = 64 << 20

CLAIM_S = 30.0
"""A claim lives for as long as it takes to write one file; one that is older was left by a process that died meanwhile."""


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

    def taken_up(self, times: int = 1) -> SavedSession:
        """The next incarnation, or the one after so many."""
        hops = tuple(
            msgspec.structs.replace(
                hop, keys=SessionCredentials(hop.keys.session, hop.keys.secret, hop.keys.incarnation + times)
            )
            for hop in self.hops
        )
        return msgspec.structs.replace(self, resumed=self.resumed + times, hops=hops)


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

    def taken_up(self, times: int = 1) -> SavedReply:
        """For the process that goes on: hops obey it, and no longer whoever wrote this."""
        return msgspec.structs.replace(self, session=self.session.taken_up(times))


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


def take_up(path: Path, saved: SavedReply, now: float) -> SavedReply:
    """The reply for the process that goes on with it, as its file has it from now on; `now` in seconds since the epoch.

    An incarnation belongs to whoever makes its claim file, so no two processes have the same one. Raises SessionFenced
    when another process is taking the reply up or has done so since it was read, UsageError where no file can be written.
    """
    held, times = saved.session.resumed, 1
    while not _claim(path, held + times, now):
        times += 1  # whoever claimed that one died before it wrote the file
    try:
        # A claim goes when the file has been written: one that was free after that is for an incarnation of the past.
        if path.exists() and read_saved(path).session.resumed != held:
            raise SessionFenced(f"another process has taken up the reply in {path}")
        mine = saved.taken_up(times)
        write_saved(path, mine)
    finally:
        claim_path(path, held + times).unlink(missing_ok=True)
    for dead in range(1, times):
        claim_path(path, held + dead).unlink(missing_ok=True)
    return mine


def claim_path(path: Path, resumed: int) -> Path:
    """Where a process claims an incarnation of the reply in `path`."""
    return path.with_name(f".{path.name}.claim{resumed}")


def _claim(path: Path, resumed: int, now: float) -> bool:
    """Claim an incarnation; False where a claim was left behind. Raises SessionFenced for one that was made just now."""
    claim = claim_path(path, resumed)
    try:
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return True
    except FileExistsError:
        if _age_s(claim, now) >= CLAIM_S:
            return False
        raise SessionFenced(f"another process is taking up the reply in {path} at this moment") from None
    except OSError as error:
        raise UsageError(f"cannot write {claim}: {error.strerror}") from error


def _age_s(path: Path, now: float) -> float:
    """How old a file is; one that has just gone is new."""
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
