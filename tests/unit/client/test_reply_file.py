"""The file of a growing reply: brought up to date, and left to a later process that has it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from shoal.client.client_options import SessionOptions
from shoal.client.completion import GrowingReply
from shoal.client.reply_file import ReplyFile
from shoal.client.saved_reply import SavedSession, read_saved, write_saved
from shoal.errors import SessionFenced, UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.types import ModelSpec, Span

SPEC = ModelSpec("tiny", "00" * 16, 6, 48)
SAVED = SavedSession(SPEC, Span(0, 6), SessionOptions(), 0, 3, 0, True, ())
MODEL = SimpleNamespace(source="tiny", client=SimpleNamespace(tickets=("a ticket",)))


def growing() -> GrowingReply:
    """A reply in a session that can be saved."""
    reply = GrowingReply([1, 2, 3], SamplingParams(seed=7))
    reply.session = SimpleNamespace(save=lambda: SAVED)  # type: ignore[assignment]
    return reply


def test_the_file_follows_the_reply(tmp_path: Path) -> None:
    """What was said so far, and how to reach the session."""
    reply, path = growing(), tmp_path / "reply"
    file = ReplyFile(path, MODEL, reply)  # type: ignore[arg-type]
    file.keep()
    assert read_saved(path).token_ids == []
    reply.token_ids, reply.text = [4, 5], "ab"
    file.keep()
    saved = read_saved(path)
    assert (saved.token_ids, saved.text, saved.seed, saved.tickets) == ([4, 5], "ab", 7, ("a ticket",))
    assert saved.session == SAVED


def test_nothing_is_kept_without_a_path_or_a_session(tmp_path: Path) -> None:
    """There is nothing to go on with."""
    ReplyFile(None, MODEL, growing()).keep()  # type: ignore[arg-type]
    path = tmp_path / "reply"
    ReplyFile(path, MODEL, GrowingReply([1], SamplingParams())).keep()  # type: ignore[arg-type]
    assert not path.exists()


def test_a_file_that_a_later_process_has_written_is_left_alone(tmp_path: Path) -> None:
    """That one goes on with the reply; a file of the same process that was put in its place does not matter."""
    reply, path = growing(), tmp_path / "reply"
    file = ReplyFile(path, MODEL, reply)  # type: ignore[arg-type]
    file.keep()
    write_saved(path, read_saved(path))
    file.keep()
    later = read_saved(path)
    write_saved(path, msgspec.structs.replace(later, session=later.session.taken_up()))
    with pytest.raises(SessionFenced, match="another process goes on"):
        file.keep()
    assert read_saved(path).session.resumed == 1


def test_what_came_to_lie_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """The first write looks again."""
    path = tmp_path / "reply"
    file = ReplyFile(path, MODEL, growing())  # type: ignore[arg-type]
    path.write_text("notes")
    with pytest.raises(UsageError, match="not replaced"):
        file.keep()
    assert path.read_text() == "notes"
