"""Where the log of a command goes: to standard error, as lines for people or as JSON for machines."""

from __future__ import annotations

import logging
from typing import Literal

from shoal.cli.json_text import json_line
from shoal.cli.log_lines import TextHandler
from shoal.cli.terminal import console, waiting
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
