"""What a user can do in a chat beside saying something: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from shoal.cli.terminal import counted, say
from shoal.errors import UsageError
from shoal.files import read_kept, replace_file

Messages = tuple[dict[str, str], ...]

HELP = (
    ("/save FILE", "keep the conversation in a file"),
    ("/load FILE", "go on with one that was kept"),
    ("/system TEXT", "what the model is told first; without a text nothing"),
    ("/retry", "ask the last question again"),
    ("/help", "show this; // at the beginning of a line says a slash"),
)

MAX_FILE_BYTES = 16 << 20


class SavedChat(msgspec.Struct, frozen=True, tag="shoal chat 1"):
    """A conversation in a file, as JSON."""

    messages: tuple[dict[str, str], ...]


class Talk(Protocol):
    """A conversation."""

    @property
    def messages(self) -> Sequence[object]:
        """What was said, by whom."""
        ...

    def begin(self, messages: Messages) -> None:
        """Go on from other messages."""
        ...


class ChatCommands:
    """Acts on a conversation. Raises UsageError for what cannot be done."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def taken(self, line: str) -> str | None:
        """What is to be said for a typed line; None when it was a command that says nothing."""
        if not line.startswith("/"):
            return line
        if line.startswith("//"):
            return line[1:]
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        match word:
            case "/save":
                self._save(_path(rest))
            case "/load":
                self._load(_path(rest))
            case "/system":
                self._set_system(rest)
            case "/retry":
                return self._retry()
            case "/help":
                for name, words in HELP:
                    say(f"{name:14} {words}")
            case _:
                raise UsageError(f"there is no {word}; there are {', '.join(name for name, _ in HELP)}")
        return None

    @property
    def _messages(self) -> Messages:
        return msgspec.convert(self._talk.messages, Messages)

    def _save(self, path: Path) -> None:
        if path.exists() and (not path.is_file() or (path.stat().st_size and not _is_chat(path))):
            raise UsageError(f"{path} is no saved chat, and is not replaced: give another name")
        try:
            replace_file(path, msgspec.json.format(msgspec.json.encode(SavedChat(self._messages))))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        say(f"kept in {path}: {counted(len(self._messages), 'message')}")

    def _load(self, path: Path) -> None:
        self._talk.begin(_read(path).messages)
        say(f"loaded from {path}: {counted(len(self._messages), 'message')}")

    def _set_system(self, text: str) -> None:
        said = tuple(one for one in self._messages if one["role"] != "system")
        self._talk.begin(({"role": "system", "content": text}, *said) if text else said)
        say("the model is told so from now on" if text else "the model is told nothing first")

    def _retry(self) -> str:
        messages = self._messages
        asked = [at for at, one in enumerate(messages) if one["role"] == "user"]
        if not asked:
            raise UsageError("nothing was asked yet")
        self._talk.begin(messages[: asked[-1]])
        return messages[asked[-1]]["content"]


def _path(text: str) -> Path:
    if not text:
        raise UsageError("give a file's name")
    return Path(text).expanduser().absolute()


def _is_chat(path: Path) -> bool:
    try:
        _read(path)
    except UsageError:
        return False
    return True


def _read(path: Path) -> SavedChat:
    try:
        return msgspec.json.decode(read_kept(path, MAX_FILE_BYTES, "saved chat"), type=SavedChat)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no saved chat: {error}") from error
