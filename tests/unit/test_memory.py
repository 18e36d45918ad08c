"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from bench.rss import rss_mb
from shoal.memory import trim_memory

PIECES, PIECE_BYTES = 2000, 50_000
"""Small enough to come from the heap, and together 100 MB."""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's")
def test_what_was_freed_is_given_back() -> None:
    """Even where a piece at the end is still in use, which keeps glibc from doing so by itself."""
    pieces = [bytearray(PIECE_BYTES) for _ in range(PIECES)]
    kept = bytearray(PIECE_BYTES)
    full_mb = rss_mb(os.getpid())
    del pieces
    trim_memory()
    assert rss_mb(os.getpid()) < full_mb - 50
    assert len(kept) == PIECE_BYTES


def test_other_systems_have_no_such_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens there."""
    monkeypatch.setattr(sys, "platform", "darwin")
    trim_memory()
