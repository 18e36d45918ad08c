"""What is logged, as lines for people, and what is logged where a command has no log."""

from __future__ import annotations

import logging
import time

from shoal.cli.terminal import say


def show_warnings() -> None:
    """Show what is logged as a warning or worse in a command that has no log, libraries' and Python's own warnings too."""
    logging.getLogger().addHandler(_WARNINGS)  # once, however often
    logging.captureWarnings(True)


class TextHandler(logging.Handler):
    """Prints the time (if `timed`), the level unless it is INFO, and the message; a trace follows."""

    def __init__(self, timed: bool = True, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._timed = timed
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        clock = time.strftime("%H:%M:%S ", time.localtime(record.created)) if self._timed else ""
        say(f"{clock}{level}{self.format(record).rstrip()}")


_WARNINGS = TextHandler(timed=False, level=logging.WARNING)
