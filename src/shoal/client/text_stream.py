"""Token ids to text as it grows: whole characters only, and nothing beyond a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not (yet) a character."""

MAX_UNFINISHED = 7
"""Replacements at the end that may still become characters: some decoders write one for each byte of a run that is not all
valid, so that three bytes of a new character turn the four of the one before into replacements too."""

MAX_WINDOW_TOKENS = 32
"""Tokens that are decoded again with each new one while no character ends where a token does."""

KEPT_TOKENS = 16
"""Of such a window, when it has grown too long: more than a character and what its text may depend on."""


class TextStream:
    """Push tokens, get text that will not change any more. `stopped` says that a stop string was completed.

    `before` are the tokens that the text goes on from: a first space is one only where something stands before it.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        # A token's text may depend on the one before (spaces, bytes), so a window of the last tokens is decoded. It begins
        # with context: tokens up to where a token and a character last ended together.
        self._window: list[int] = []
        self._context = 0
        self._shown = 0  # characters of the window's text that were released
        self._begun = False
        self._held = ""  # released text that may be the beginning of a stop string
        for token in self._whole(before[-KEPT_TOKENS:]):
            self._take(token)  # its text is the prompt's

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character or a stop string may be unfinished."""
        self._begun = True
        return self._release(self._take(token))

    def _take(self, token: int) -> str:
        """The same before stop strings are looked for."""
        self._window.append(token)
        text = self._decode(self._window)
        unfinished = _unfinished(text)
        ready = text[self._shown : len(text) - unfinished]
        self._shown = max(self._shown, len(text) - unfinished)
        if ready and not unfinished:
            self._slide(self._context, 0)
        elif len(self._window) > MAX_WINDOW_TOKENS:
            self._slide(len(self._window) - KEPT_TOKENS, unfinished)
        return ready

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        ready = self._decode(self._window)[self._shown :] if self._begun else ""
        self._shown += len(ready)
        text = self._release(ready)
        text, self._held = text + self._held, ""
        return text

    def _whole(self, tokens: Sequence[int]) -> list[int]:
        """Tokens without those at the beginning that are the rest of a character."""
        starts = range(min(len(tokens), MAX_UNFINISHED))
        clean = (start for start in starts if not self._decode(tokens[start:]).startswith(REPLACEMENT))
        return list(tokens[next(clean, 0) :])

    def _slide(self, start: int, unfinished: int) -> None:
        """Forget the window's first `start` tokens; all of the rest's text is released but for the last characters."""
        del self._window[:start]
        self._context = len(self._window)
        self._shown = max(0, len(self._decode(self._window)) - unfinished)

    def _release(self, text: str) -> str:
        """Text that can be shown: up to a stop string, or to what may become one."""
        if self.stopped:
            return ""
        text = self._held + text
        # The string that is complete first ends the text, however the tokens divide it; of two, the longer.
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _unfinished(text: str) -> int:
    """How many characters at the end may still become another."""
    end = text[-MAX_UNFINISHED:]
    return len(end) - len(end.rstrip(REPLACEMENT))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
