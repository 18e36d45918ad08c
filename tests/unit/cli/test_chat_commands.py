"""Lines of a chat that begin with a slash."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from shoal.cli.chat_commands import ChatCommands, Messages
from shoal.errors import UsageError

SYSTEM = {"role": "system", "content": "be brief"}
FIRST = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
SECOND = ({"role": "user", "content": "c"}, {"role": "assistant", "content": "d"})


class Conversation:
    """What was said."""

    def __init__(self, *messages: dict[str, str]) -> None:
        self.messages: Messages = messages

    def begin(self, messages: Messages) -> None:
        """Talk."""
        self.messages = messages


def test_what_is_said() -> None:
    """A line without a slash, or with two."""
    commands = ChatCommands(Conversation())
    assert commands.taken("hello") == "hello"
    assert commands.taken("//etc") == "/etc"


def test_a_conversation_is_kept_and_gone_on_with(tmp_path: Path, said: io.StringIO) -> None:
    """In a file of its owner's, from any folder."""
    kept = tmp_path / "chat.json"
    assert ChatCommands(Conversation(SYSTEM, *FIRST)).taken(f"/save {kept}") is None
    assert kept.stat().st_mode & 0o777 == 0o600
    later = Conversation()
    assert ChatCommands(later).taken(f"/load {kept}") is None
    assert later.messages == (SYSTEM, *FIRST)
    assert "3 messages" in said.getvalue()


@pytest.mark.parametrize("content", ["notes", "{}", '{"type": "another"}'])
def test_only_a_saved_chat_is_replaced_or_read(tmp_path: Path, content: str) -> None:
    """Any other file is left alone."""
    notes = tmp_path / "notes"
    notes.write_text(content)
    for command in ("/save", "/load"):
        with pytest.raises(UsageError, match="no saved chat"):
            ChatCommands(Conversation()).taken(f"{command} {notes}")
    assert notes.read_text() == content


@pytest.mark.parametrize(
    "line", ["/save", "/load", "/load /no/such/file", "/save /no/such/folder/x", "/what", "/retry"]
)
def test_what_cannot_be_done(line: str) -> None:
    """Is an error of ours."""
    with pytest.raises(UsageError):
        ChatCommands(Conversation()).taken(line)


def test_the_model_is_told_something_else() -> None:
    """The conversation goes on under it."""
    talk = Conversation(SYSTEM, *FIRST)
    ChatCommands(talk).taken("/system be kind")
    assert talk.messages == ({"role": "system", "content": "be kind"}, *FIRST)
    ChatCommands(talk).taken("/system")
    assert talk.messages == FIRST


def test_the_last_question_is_asked_again() -> None:
    """Its answer is forgotten."""
    talk = Conversation(SYSTEM, *FIRST, *SECOND)
    assert ChatCommands(talk).taken("/retry") == "c"
    assert talk.messages == (SYSTEM, *FIRST)


def test_a_question_that_got_no_answer_is_asked_again() -> None:
    """It was forgotten, so that nothing is taken back."""
    talk = Conversation(SYSTEM, *FIRST)
    commands = ChatCommands(talk)
    assert commands.taken("c") == "c"
    commands.failed()
    assert commands.taken("/retry") == "c"
    assert talk.messages == (SYSTEM, *FIRST)
    talk.messages = (SYSTEM, *FIRST, *SECOND)
    assert commands.taken("/retry") == "c"  # now it has one, which is
    assert talk.messages == (SYSTEM, *FIRST)


def test_an_answer_is_not_lost_by_asking_again_in_vain() -> None:
    """What `/retry` took back comes back when the turn fails; then it is the question that failed which is asked again."""
    talk = Conversation(SYSTEM, *FIRST, *SECOND)
    commands = ChatCommands(talk)
    assert commands.taken("/retry") == "c"
    commands.failed()
    assert talk.messages == (SYSTEM, *FIRST, *SECOND)
    assert commands.taken("/retry") == "c"
    assert talk.messages == (SYSTEM, *FIRST)


def test_a_question_that_failed_is_of_its_conversation(tmp_path: Path) -> None:
    """Another system prompt keeps it, another conversation does not have it."""
    kept = tmp_path / "chat.json"
    ChatCommands(Conversation(*FIRST)).taken(f"/save {kept}")
    commands = ChatCommands(Conversation(*SECOND))
    commands.taken("lost")
    commands.failed()
    commands.taken("/system be kind")
    assert commands.taken("/retry") == "lost"
    commands.failed()
    commands.taken(f"/load {kept}")
    assert commands.taken("/retry") == "a"
