"""Lines that a user types: with editing and a history on a terminal, as they come elsewhere."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from shoal.cli.terminal import say, styled, waiting

MAX_HISTORY = 1000
PROMPT = "> "


class LineEditor:
    """Use with `with`. `history` is the file in which lines are kept between runs; None: nowhere."""

    def __init__(self, history: Path | None, prompts: bool = True) -> None:
        self._history = history
        self._prompts = prompts and sys.stdin.isatty()
        self._readline: Any = None
        if self._prompts and sys.stdout.isatty():
            with contextlib.suppress(ImportError):  # not on Windows
                import readline

                self._readline = readline

    def ask(self) -> str | None:
        """The next line without its end; None when there are no more, or after Ctrl-C."""
        try:
            with waiting.silent():
                if self._readline is not None:
                    return input(PROMPT)
                if self._prompts:
                    say(styled(PROMPT.strip(), "bold"), " ", end="")
                line = sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            line = ""
        if not line and self._prompts:
            say("")  # the prompt's line ends
        return line.rstrip("\n") if line else None

    def __enter__(self) -> LineEditor:
        if self._readline is not None and self._history is not None:
            self._readline.set_history_length(MAX_HISTORY)
            with contextlib.suppress(OSError):
                self._readline.read_history_file(self._history)
        return self

    def __exit__(self, *_: object) -> None:
        if self._readline is not None and self._history is not None:
            with contextlib.suppress(OSError):
                self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._history.touch(mode=0o600)
                self._readline.write_history_file(self._history)
