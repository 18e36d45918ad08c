"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def trim_memory() -> None:
    """Give freed memory back to the system. To load a model takes as much again as the model, in pieces that glibc would keep.

    Nothing where the C library has no such call.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
