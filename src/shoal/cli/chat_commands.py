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
    ("/retry", "ask the last question again, also one that got no answer"),
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
        self._asked: str | None = None
        self._failed: str | None = None
        self._taken_back: Messages | None = None

    def taken(self, line: str) -> str | None:
        """What is to be said for a typed line; None when it was a command that says nothing."""
        if not line.startswith("/"):
            return self._say(line)
        if line.startswith("//"):
            return self._say(line[1:])
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

    def failed(self) -> None:
        """What was to be said got no answer: `/retry` means it from now on, and an answer that it took back is there again."""
        if self._taken_back is None:
            self._failed = self._asked
        else:
            self._talk.begin(self._taken_back)

    def _say(self, line: str, taken_back: Messages | None = None) -> str:
        self._asked, self._failed, self._taken_back = line, None, taken_back
        return line

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
        self._failed = None
        say(f"loaded from {path}: {counted(len(self._messages), 'message')}")

    def _set_system(self, text: str) -> None:
        said = tuple(one for one in self._messages if one["role"] != "system")
        self._talk.begin(({"role": "system", "content": text}, *said) if text else said)
        say("the model is told so from now on" if text else "the model is told nothing first")

    def _retry(self) -> str:
        messages = self._messages
        if self._failed is not None:
            return self._say(self._failed)
        asked = [at for at, one in enumerate(messages) if one["role"] == "user"]
        if not asked:
            raise UsageError("nothing was asked yet")
        self._talk.begin(messages[: asked[-1]])
        return self._say(messages[asked[-1]]["content"], taken_back=messages)


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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no saved chat: {error}") from error
