"""`python -m bench start`: how long a command takes until its user sees something, beside `import torch` alone."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from bench.report import report
from shoal.local_cluster import LocalCluster
from shoal.model.weights.model_source import demo_model_path
from shoal.model.weights.tokenizer_cache import CACHE_VARIABLE

SHOAL = (sys.executable, "-m", "shoal.cli.main")
GENERATE = ("generate", "Why is the sea salty?", "--max-tokens", "2")
DEADLINE_S = 300.0


def run(runs: int) -> dict[str, Any]:
    """Medians over interleaved runs, in seconds, of commands on loopback; the first start converts the tokenizer."""
    with tempfile.TemporaryDirectory() as cache, LocalCluster(str(demo_model_path()), 1, threads=1) as swarm:
        environment = {**os.environ, CACHE_VARIABLE: cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a second start finds the bytecode of the first one
        ways = ("--peers", swarm.ticket)
        commands = {
            "import_torch": ((sys.executable, "-c", "import torch; print()"), "stdout"),
            "first_token": ((*SHOAL, *GENERATE, *ways), "stdout"),
            "status": ((*SHOAL, "status", *ways), "end"),
            "help": ((*SHOAL, "--help"), "end"),
        }
        first_start_s = _seconds(*commands["first_token"], environment)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, (command, until) in commands.items():
                times[name].append(_seconds(command, until, environment))
    medians = {f"{name}_s": statistics.median(taken) for name, taken in times.items()}
    return report(
        "start",
        "s",
        medians["first_token_s"],
        "import torch",
        medians["import_torch_s"],
        beyond_torch_s=medians["first_token_s"] - medians["import_torch_s"],
        first_start_s=first_start_s,
        **medians,
        runs=runs,
    )


def _seconds(command: tuple[str, ...], until: str, environment: dict[str, str]) -> float:
    """From starting a command to its first byte on standard output, or to its end."""
    began_at = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert process.stdout is not None
    with process, process.stdout as output:
        seen = output.read(1) if until == "stdout" else output.read()
        taken_s = time.perf_counter() - began_at
        output.read()
        if process.wait(DEADLINE_S) != 0 or (until == "stdout" and not seen):
            raise RuntimeError(f"{' '.join(command[:4])} failed with code {process.returncode}")
        if until == "end":
            taken_s = time.perf_counter() - began_at
    return taken_s
