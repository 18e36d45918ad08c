"""The line that says what a command waits for, once it has printed nothing for a moment."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from shoal.clock import SYSTEM_CLOCK, Clock

SILENCE_S = 0.5
"""Without output for so long, a command says what it waits for."""

TICK_S = 0.1
AGAIN_S = 10.0
"""How often a line that stays on the screen, as in a file, is said again while nothing else comes."""

TOLD_S = 1.0
"""From when on the line says for how long."""

TURNS, TURN_S = "|/-\\", 0.25
"""What stands before a line on a terminal, and how soon it turns: seconds alone would move too rarely to look alive."""


class Screen(Protocol):
    """Where the line is shown. `is_terminal`: a line there can be written over."""

    @property
    def is_terminal(self) -> bool:
        """Whether the cursor can be moved."""
        ...

    @property
    def width(self) -> int:
        """Columns."""
        ...

    def put(self, text: str) -> None:
        """Write as it is, at once."""
        ...


class StatusLine:
    """Shows what `watch` gives while a command prints nothing. All output goes through `printing`, which takes the line away.

    On a terminal the line is written over, beneath a reply that has stopped in the middle of a line; elsewhere it is a line
    whenever its words change. Safe for several threads.
    """

    def __init__(self, screen: Screen, clock: Clock = SYSTEM_CLOCK) -> None:
        self._screen = screen
        self._clock = clock
        self._lock = threading.RLock()
        self._what: Callable[[], str] = lambda: ""
        self._timed = True
        self._silent = 1  # until it is started
        self._printed_at = clock.monotonic()
        self._words = ""
        self._words_since = clock.monotonic()
        self._said_at = 0.0
        self._shown = False
        self._line = ""
        self._mid_line = False
        self._stopped = threading.Event()

    def start(self, since: float | None = None) -> None:
        """Begin to look, in a thread of its own, which ends with the process or at `stop`. `since` when nothing was printed."""
        self._stopped.clear()
        self._silent, self._printed_at = 0, self._clock.monotonic() if since is None else since
        threading.Thread(target=self._keep, name="shoal-status", daemon=True).start()

    def stop(self) -> None:
        """Take the line away for good. Stopping twice is harmless."""
        self._stopped.set()
        with self._lock:
            self._silent = 1
            self._clear()

    def watch(self, what: Callable[[], str], timed: bool = True) -> None:
        """What is waited for from now on; called in another thread whenever it is to be shown. `timed`: say for how long."""
        with self._lock:
            self._what, self._timed = what, timed

    @property
    def text(self) -> str:
        """What is waited for now."""
        return self._what()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing is said meanwhile: the user is typing, or another program has the terminal."""
        with self._lock:
            self._silent += 1
            self._clear()
        try:
            yield
        finally:
            with self._lock:
                self._silent -= 1
                self._printed_at = self._clock.monotonic()

    @contextlib.contextmanager
    def printing(self, ends_line: bool = True) -> Iterator[None]:
        """Something else is printed; `ends_line`: the cursor stands at the beginning of a line afterwards."""
        with self._lock:
            self._clear()
            yield
            self._mid_line = not ends_line
            self._printed_at = self._clock.monotonic()

    def tick(self) -> None:
        """Look whether there is something to show, and show it."""
        with self._lock:
            if self._silent:
                return
            now, text = self._clock.monotonic(), self._what()
            words = re.sub(r"[\d,.:]+", "#", text)
            if words != self._words:
                self._words, self._words_since, self._said_at = words, now, 0.0
            if not text or now - self._printed_at < SILENCE_S:
                return
            seconds = now - self._words_since
            line = f"{text}, {seconds:.0f} s" if self._timed and seconds >= TOLD_S else text
            if self._screen.is_terminal:
                turn = f"{TURNS[int(now / TURN_S) % len(TURNS)]} " if self._timed else ""
                self._draw(f"{turn}{line}"[: self._screen.width - 1])
            elif not self._said_at or now - self._said_at >= AGAIN_S:
                self._said_at = now
                self._screen.put(f"{line}\n")

    def _draw(self, line: str) -> None:
        """Over the old line; below a reply's unfinished one, where the cursor returns to."""
        if self._shown and line == self._line:
            return
        self._line = line
        below = ("\x1bD\x1b[A\x1b7\r\n", "\x1b8") if self._mid_line else ("\r", "")
        self._shown = True
        self._screen.put(f"{below[0]}\x1b[2K{line}{below[1]}")

    def _clear(self) -> None:
        if self._shown:
            self._shown = False
            self._screen.put("\x1b7\r\n\x1b[2K\x1b8" if self._mid_line else "\r\x1b[2K")

    def _keep(self) -> None:
        while not self._stopped.wait(TICK_S):
            self.tick()
