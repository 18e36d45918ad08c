"""What a process holds, as its system tells it."""

from __future__ import annotations

import resource
from pathlib import Path


def rss_mb(process: int) -> float:
    """The memory that a process has now, in megabytes; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * resource.getpagesize() / 1e6
