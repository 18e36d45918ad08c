"""What is logged where a command has no log."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator

import pytest

from shoal.cli.log_lines import show_warnings


@pytest.fixture
def as_before() -> Iterator[None]:
    """Root logger and warnings are put back afterwards."""
    root, shown = logging.getLogger(), warnings.showwarning
    before = root.handlers[:]
    logging.captureWarnings(False)  # as another test may have left it, which warnings do not know any more
    warnings.showwarning = shown
    yield
    root.handlers[:] = before
    logging.captureWarnings(False)
    warnings.showwarning = shown


@pytest.mark.filterwarnings("always")
@pytest.mark.usefixtures("as_before")
def test_what_libraries_have_to_say(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a command without a log of its own: their warnings, and Python's, as lines that make room for themselves."""
    monkeypatch.setattr(logging.getLogger("shoal"), "propagate", True)
    for _ in range(2):
        show_warnings()
    logging.getLogger("shoal.engine").warning("it computes in plain torch")
    logging.getLogger("asyncio").error("a task was lost")
    logging.getLogger("asyncio").info("hidden")
    warnings.warn("this will be gone", FutureWarning, stacklevel=1)
    lines = said.getvalue().splitlines()
    assert lines[:2] == ["warning: it computes in plain torch", "error: a task was lost"]
    assert "FutureWarning: this will be gone" in lines[2]
    assert "hidden" not in said.getvalue()
