"""Where the log of a command goes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator

import pytest

from shoal.cli import logs
from shoal.cli.terminal import console, waiting
from shoal.errors import UsageError


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is printed; the package's logger is put back afterwards."""
    logger, text = logging.getLogger("shoal"), io.StringIO()
    before = logger.handlers[:], logger.level, logger.propagate
    monkeypatch.setattr(console, "file", text)
    yield text
    logger.handlers[:], logger.level, logger.propagate = before


def test_lines_for_people(written: io.StringIO) -> None:
    """Markup in a message is text; what is below the level is not shown."""
    logs.set_up_logging("info", "text")
    logging.getLogger("shoal.server").info("server [/oops] joined")
    logging.getLogger("shoal.server").debug("hidden")
    assert written.getvalue().endswith("server [/oops] joined\n")
    assert "hidden" not in written.getvalue()


def test_lines_for_machines(written: io.StringIO) -> None:
    """One JSON object a line, with the trace of an error."""
    logs.set_up_logging("warning", "json")
    try:
        raise ValueError("no more")
    except ValueError:
        logging.getLogger("shoal.server").exception("gossip failed")
    line = json.loads(written.getvalue())
    assert (line["level"], line["logger"], line["message"]) == ("error", "shoal.server", "gossip failed")
    assert "ValueError: no more" in line["trace"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_makes_room_for_itself(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch, form: logs.LogFormat
) -> None:
    """The line that tells what is waited for is taken away first."""
    rooms: list[bool] = []

    @contextlib.contextmanager
    def printing(ends_line: bool = True) -> Iterator[None]:
        rooms.append(ends_line)
        yield

    monkeypatch.setattr(waiting, "printing", printing)
    logs.set_up_logging("info", form)
    logging.getLogger("shoal.server").info("joined")
    assert rooms == [True]


def test_an_unknown_level_is_refused(written: io.StringIO) -> None:
    """The error lists the levels."""
    with pytest.raises(UsageError, match="debug, info, warning, error"):
        logs.set_up_logging("loud", "text")
