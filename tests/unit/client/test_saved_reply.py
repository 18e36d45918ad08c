"""Replies in files: whole or not at all, for their owner alone, and taken up by one process at a time."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from filelock import FileLock

from shoal.client.client_options import SessionOptions
from shoal.client.saved_reply import (
    MAX_FILE_BYTES,
    SavedHop,
    SavedReply,
    SavedSession,
    lock_path,
    place_for_reply,
    read_saved,
    take_up,
    write_saved,
)
from shoal.client.session.hop_client import SessionCredentials
from shoal.errors import RecordError, SessionFenced, UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.protocol.messages import Numerics
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.types import ModelSpec, Span
from tests.records import FINGERPRINT, signed_record

SERVER = Identity.generate()
NUMERICS = Numerics("torch", "probe", "float32", exact=True)


def saved_reply(resumed: int = 0, position: int = 4) -> SavedReply:
    """A reply of three prompt tokens and two more."""
    hop = SavedHop(signed_record(SERVER).data, Span(0, 12), SessionCredentials.draw(), NUMERICS, ("w",) * 12)
    model = ModelSpec("tiny", FINGERPRINT, 12, 48)
    session = SavedSession(model, Span(0, 12), SessionOptions(), resumed, position, 0, True, (hop,))
    return SavedReply("tiny", ("a ticket",), [1, 2, 3], [4, 5], "ab", 7, SamplingParams(), "", session)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the reply is kept."""
    return tmp_path / "reply"


def test_what_was_written_is_read(path: Path) -> None:
    """All of it, from a file of its owner's, and nothing is left beside it."""
    saved = saved_reply()
    write_saved(path, saved)
    assert read_saved(path) == saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(path.parent.iterdir()) <= {path, lock_path(path)}


def test_a_file_that_cannot_be_written_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs neither the reply as it was nor its folder's tidiness."""

    def fails(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    write_saved(path, saved_reply())
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(UsageError, match="No space left"):
        write_saved(path, saved_reply())
    assert path.read_bytes() == before
    assert set(path.parent.iterdir()) <= {path, lock_path(path)}


def test_a_file_too_large_is_not_read(path: Path) -> None:
    """Its size is looked at first."""
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UsageError, match="larger than"):
        read_saved(path)


def test_rows_follow_from_the_tokens() -> None:
    """Only those up to the session's position have been fed."""
    assert saved_reply(position=4).fed_ids == [1, 2, 3, 4]
    assert saved_reply(position=0).fed_ids == []


def test_the_servers_of_the_route_are_ways_to_the_swarm() -> None:
    """After the tickets that the client had; a record that nobody signed is refused."""
    saved = saved_reply()
    record = signed_record(SERVER).record
    assert saved.ways == ["a ticket", str(Ticket(record.peer, record.addresses))]
    hop = msgspec.structs.replace(saved.session.hops[0], record=bytes(100))
    with pytest.raises(RecordError):
        hop.parts()


def test_taking_up_raises_the_incarnation(path: Path) -> None:
    """At every hop and in the file, before anybody is asked."""
    saved = saved_reply(resumed=2)
    write_saved(path, saved)
    mine = take_up(path, saved)
    assert read_saved(path) == mine
    assert mine.session.resumed == 3
    assert [hop.keys.incarnation for hop in mine.session.hops] == [1]
    assert set(path.parent.iterdir()) <= {path, lock_path(path)}


def test_the_second_process_is_refused(path: Path) -> None:
    """It read the file before the first one wrote it."""
    saved = saved_reply()
    write_saved(path, saved)
    mine = take_up(path, saved)
    with pytest.raises(SessionFenced, match="has taken up"):
        take_up(path, saved)
    assert read_saved(path) == mine
    assert set(path.parent.iterdir()) <= {path, lock_path(path)}


def test_while_one_process_is_at_it(path: Path) -> None:
    """It holds the lock and the file is not yet written: the other one does not write."""
    saved = saved_reply()
    write_saved(path, saved)
    with FileLock(lock_path(path)), pytest.raises(SessionFenced, match="at this moment"):
        take_up(path, saved)
    assert read_saved(path) == saved


def test_a_lock_of_the_dead_is_free(path: Path) -> None:
    """A process that died while it held the lock left its file, and nothing else."""
    saved = saved_reply()
    write_saved(path, saved)
    program = f"import os; from filelock import FileLock; FileLock({str(lock_path(path))!r}).acquire(); os._exit(0)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert take_up(path, saved).session.resumed == 1


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """The error says so; nobody else is blamed."""
    with pytest.raises(UsageError, match="cannot write"):
        take_up(tmp_path / "nowhere" / "reply", saved_reply())


NOT_A_REPLY = {"notes": b"remember the milk", "another file": b"\x81\xa4type\xa3dog", "a cut one": b"\x8a\xa4type"}


@pytest.mark.parametrize("content", NOT_A_REPLY.values(), ids=NOT_A_REPLY)
def test_only_a_saved_reply_is_replaced(tmp_path: Path, content: bytes) -> None:
    """Any other file is left as it is, whatever it holds."""
    place = tmp_path / "notes.txt"
    place.write_bytes(content)
    with pytest.raises(UsageError, match="is no saved reply, and is not replaced"):
        place_for_reply(place)
    assert place.read_bytes() == content


def test_where_a_reply_may_be_kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a saved reply, of an empty file, or of nothing; the path is good from any folder."""
    write_saved(path, saved_reply())
    assert place_for_reply(path) == path.resolve()
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    assert place_for_reply("empty") == tmp_path.resolve() / "empty"
    assert place_for_reply("new") == tmp_path.resolve() / "new"
    assert place_for_reply("link") == path.resolve()


@pytest.mark.parametrize("where", ["/dev/null", ".", "no/such/folder", "x" * 300, "nul\0"])
def test_where_none_may_be_kept(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices, folders, and names that cannot be."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        place_for_reply(where)


def test_its_keys_are_not_shown() -> None:
    """A notebook shows what a cell gives."""
    saved = saved_reply()
    for shown in (repr(saved), repr(saved.session), repr(saved.session.hops)):
        assert repr(saved.session.hops[0].keys.secret)[2:-1] not in shown
    assert repr(saved).startswith("<SavedReply ")


def test_a_path_is_needed() -> None:
    """The error says so."""
    with pytest.raises(UsageError, match="from a path, not from a NoneType"):
        read_saved(None)  # type: ignore[arg-type]  # what people pass
