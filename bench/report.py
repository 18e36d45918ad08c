"""What every benchmark says about where it ran."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def report(name: str, unit: str, value: float, peer: str, peer_value: float, **more: Any) -> dict[str, Any]:
    """A result in the common form; `ratio` is value ÷ peer_value."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": value / peer_value,
        **more,
        "hardware": hardware(),
        "commit": commit(),
    }


def hardware() -> str:
    """Processor and core count, as the system tells them."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def commit() -> str:
    """The commit of the source tree that this module lies in; "unknown" outside one."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
