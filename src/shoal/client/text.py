"""Token ids to text as it grows: whole characters only, and nothing beyond a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not (yet) a character."""

MAX_HELD_TOKENS = 8
"""A character takes at most four bytes; a replacement that lasts longer is in the text itself."""


class TextStream:
    """Push tokens, get text that will not change any more."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._prefix = 0  # tokens before this one are context that is no longer looked at
        self._read = 0  # tokens before this one have been turned into text
        self._held = ""  # text that may be the beginning of a stop string

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character or a stop string may be unfinished."""
        self._tokens.append(token)
        # A token's text may depend on its neighbours (spaces), so a window is decoded with and without the new tokens.
        before = self._decode(self._tokens[self._prefix : self._read])
        now = self._decode(self._tokens[self._prefix :])
        waiting = len(self._tokens) - self._read
        if now.endswith(REPLACEMENT) and waiting < MAX_HELD_TOKENS:
            return ""
        self._prefix, self._read = self._read, len(self._tokens)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        before = self._decode(self._tokens[self._prefix : self._read])
        rest = self._decode(self._tokens[self._prefix :])[len(before) :]
        self._read = len(self._tokens)
        text = self._release(rest) + ("" if self.stopped else self._held)
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        """Text that can be shown: up to a stop string, or to what may become one."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
