"""How fast this machine reads memory: the limit of every decode step."""

from __future__ import annotations

import time

import torch

from shoal.model.kernels.cpu import Context

BUFFER_BYTES = 512 << 20
"""More than any cache."""

PIECES = 64


class Bandwidth:
    """Reads a buffer with the kernels' threads, four streams each."""

    def __init__(self, threads: int) -> None:
        self._context = Context(threads)
        self._buffer = torch.ones(BUFFER_BYTES // 4)

    def measure(self) -> float:
        """Bytes per second, once through the buffer."""
        started_at = time.perf_counter()
        self._context.read(self._buffer, PIECES)
        return BUFFER_BYTES / (time.perf_counter() - started_at)
