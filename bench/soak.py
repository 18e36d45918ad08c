"""`python -m bench soak`: calls of mixed lengths from several threads, and what client and server hold meanwhile.

Both are processes of their own. A call opens a session, reads a prompt that nobody has asked for before, and closes it.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.report import commit, hardware
from bench.rss import rss_mb
from shoal.local_cluster import LocalCluster
from shoal.model.weights.model_source import demo_model_path

MEMORY_MB = 1000
ON_TOP_MB = 300
"""What interpreter and libraries may have beside a server's `--memory`."""

LONGEST_PROMPT = 256
MOST_TOKENS = 4
SAMPLES = 100
SHOWN = 20
"""Of the samples, how many the curve shows."""


class Sample(NamedTuple):
    """What both held after so many calls, in megabytes."""

    calls: int
    client: float
    server: float


def run(calls: int, threads: int, seed: int) -> dict[str, Any]:
    """The curves, and how they climb over the second half, in megabytes for each 1,000 calls."""
    began = time.monotonic()
    options = ("--memory", f"{MEMORY_MB}MB", "--transport", "tls")
    with LocalCluster(str(demo_model_path()), 1, threads=1, options=options) as swarm:
        samples, failed = _samples(swarm, calls, threads, seed)
    return {
        "name": "soak",
        "calls": calls,
        "threads": threads,
        "failed": failed,
        "memory_mb": MEMORY_MB,
        "within": max(sample.server for sample in samples) <= MEMORY_MB + ON_TOP_MB,
        "rss_mb": {party: _summary(samples, party) for party in ("client", "server")},
        "curve": {str(one.calls): {"client": one.client, "server": one.server} for one in _shown(samples)},
        "total_s": time.monotonic() - began,
        "hardware": hardware(),
        "commit": commit(),
    }


def _samples(swarm: LocalCluster, calls: int, threads: int, seed: int) -> tuple[list[Sample], int]:
    """What was seen at each word of the client's, and how many calls failed."""
    server, samples, failed = swarm.servers[0].process.pid, list[Sample](), 0
    command = [sys.executable, "-m", "bench.soak", swarm.ticket, *map(str, (calls, threads, seed))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        for line in client.stdout:
            done, failed = map(int, line.split())
            samples.append(Sample(done, rss_mb(client.pid), rss_mb(server)))
    if client.returncode != 0 or not samples or samples[-1].calls != calls:
        raise RuntimeError(f"the client ended with code {client.returncode}")
    return samples, failed


def _summary(samples: Sequence[Sample], party: str) -> dict[str, float]:
    each = [getattr(sample, party) for sample in samples]
    half = len(each) // 2
    slope = climb([sample.calls for sample in samples[half:]], each[half:])
    return {"first": each[0], "half": each[half], "last": each[-1], "most": max(each), "mb_per_1000_calls": 1e3 * slope}


def climb(at: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the straight line through these points (least squares)."""
    return statistics.linear_regression(at, values).slope if len(set(at)) > 1 else 0.0


def _shown(samples: Sequence[Sample]) -> list[Sample]:
    """Some of them, evenly, with the last."""
    step = max(1, len(samples) // SHOWN)
    return [*samples[step - 1 : -1 : step], samples[-1]]


def client(ticket: str, calls: int, threads: int, seed: int) -> None:
    """The client's process: after every so many calls it says how many were made, and how many of them failed."""
    from shoal.client.sync import connect
    from shoal.errors import ShoalError

    numbers, done, failed, saying = itertools.count(), 0, 0, threading.Lock()
    with connect(peers=[ticket], transport="tls") as model:
        vocabulary = model.remote.config.vocab_size

        def call(rng: random.Random) -> bool:
            length = int(math.exp(rng.uniform(math.log(4), math.log(LONGEST_PROMPT))))
            prompt = [rng.randrange(3, vocabulary) for _ in range(length)]
            try:
                model.generate(prompt, raw=True, max_tokens=rng.randint(1, MOST_TOKENS), ignore_eos=True)
            except ShoalError as error:
                print(f"a call failed: {error}", file=sys.stderr, flush=True)
                return False
            return True

        def keep_calling() -> None:
            nonlocal done, failed
            while (number := next(numbers)) < calls:
                good = call(random.Random(f"{seed} {number}"))
                with saying:
                    done, failed = done + 1, failed + (not good)
                    if done % max(1, calls // SAMPLES) == 0 or done == calls:
                        print(done, failed, flush=True)

        callers = [threading.Thread(target=keep_calling) for _ in range(threads)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()


if __name__ == "__main__":
    client(sys.argv[1], *map(int, sys.argv[2:5]))
