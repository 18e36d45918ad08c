"""What commands print for people."""

from __future__ import annotations

import io

import pytest

from shoal.cli.terminal import console


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """All that goes to the console, which is wide enough for any line."""
    text = io.StringIO()
    monkeypatch.setattr(console, "file", text)
    monkeypatch.setattr(console, "_width", 500)
    return text
