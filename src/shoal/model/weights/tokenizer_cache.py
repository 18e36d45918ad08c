"""Converted tokenizers, kept in the cache folder: turning a GGUF's tokenizer into one takes from 3 to 40 seconds.

A file is named by a hash of what it was made from and of the versions that made it. It is JSON behind a line with its own
hash; a file that is damaged, too large, of another user or made from something else counts as absent.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from shoal.files import replace_file

CACHE_VARIABLE = "SHOAL_CACHE"
"""Replaces the platform's cache folder."""

FORM = "shoal tokenizer 1"
"""The form of the files; another number whenever `TokenizerData` or what it is made from means something else."""

MAX_FILES = 16
"""The files that were used last are kept."""

MAX_FILE_BYTES = 256 << 20
"""A vocabulary of 262,144 tokens with its merges takes 33 MB."""

_LOG = logging.getLogger("shoal.tokenizer")


class TokenizerData(msgspec.Struct, frozen=True):
    """A tokenizer as data: the `tokenizers` library's own JSON, and what transformers knows beside it.

    `special_tokens` are texts by their role ("bos_token"). `splits_special_tokens`: special tokens in a text are text.
    """

    tokenizer: msgspec.Raw
    chat_templates: dict[str, str]
    special_tokens: dict[str, str]
    eos_token_id: int | None
    splits_special_tokens: bool


class TokenizerCache:
    """A folder of converted tokenizers; `versions` names what converted them."""

    def __init__(self, folder: Path, versions: Iterable[str] = ()) -> None:
        self._folder = folder
        self._versions = (FORM, *versions)

    def path(self, source: str) -> Path:
        """Where the tokenizer made from `source`, a hash of its content, is kept."""
        name = hashlib.blake2b("\0".join((*self._versions, source)).encode(), digest_size=16).hexdigest()
        return self._folder / f"{name}.json"

    def load(self, source: str) -> TokenizerData | None:
        """The tokenizer made from this source; None when there is none that is whole."""
        path = self.path(source)
        try:
            data = _own_bytes(path)
            if data is None:
                return None
            head, _, body = data.partition(b"\n")
            if head != _head(path, body):
                return None
            os.utime(path)
            return msgspec.json.decode(body, type=TokenizerData)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def store(self, source: str, data: TokenizerData) -> None:
        """Keep a tokenizer. A folder that cannot be written costs the next start its time, and nothing else."""
        path, body = self.path(source), msgspec.json.encode(data)
        if len(body) > MAX_FILE_BYTES // 2:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, _head(path, body) + b"\n" + body)
            self._drop_oldest()
        except OSError as error:
            _LOG.info("the converted tokenizer is not kept in %s: %s", self._folder, error)

    def drop(self, source: str) -> None:
        """Forget a file that turned out to be of no use."""
        with suppress(OSError):
            self.path(source).unlink()

    def _drop_oldest(self) -> None:
        files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[MAX_FILES:]:
            file.unlink(missing_ok=True)


def cache_folder() -> Path:
    """$SHOAL_CACHE/tokenizers, or the same in the platform's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser() / "tokenizers"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "shoal" / "tokenizers"


def _head(path: Path, body: bytes) -> bytes:
    """The first line: the form, the file's name (so that no file stands for another), and a hash of the rest."""
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    return f"{FORM} {path.stem} {digest}".encode()


def _own_bytes(path: Path) -> bytes | None:
    """A plain file of this user's, of a sensible size; None for anything else."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        owned = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        writable = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and os.name == "posix"
        if not stat.S_ISREG(status.st_mode) or not owned or writable or status.st_size > MAX_FILE_BYTES:
            return None
        return file.read(MAX_FILE_BYTES)
