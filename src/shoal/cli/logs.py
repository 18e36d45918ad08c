"""Where the log of a command goes: to standard error, as lines for people or as JSON for machines."""

from __future__ import annotations

import logging
import time
from typing import Literal

from shoal.cli.json_text import json_line
from shoal.cli.terminal import console, say, waiting
from shoal.errors import UsageError

LogFormat = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")


def set_up_logging(level: str, form: LogFormat) -> None:
    """Show what the package logs from `level` on. Raises UsageError for an unknown level."""
    if level not in LEVELS:
        raise UsageError(f"the log level is one of {', '.join(LEVELS)}, not {level!r}")
    logger = logging.getLogger("shoal")
    logger.handlers[:] = [JsonHandler() if form == "json" else TextHandler()]
    logger.setLevel(level.upper())
    logger.propagate = False


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


class JsonHandler(logging.Handler):
    """Prints one JSON object for each record: time (seconds since 1970), level, logger, message, trace (empty without one)."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "trace": trace,
        }
        with waiting.printing():
            console.file.write(json_line(line) + "\n")
            console.file.flush()
