"""Benchmarks: each a function of the number of tokens that returns a dictionary ready for JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _decode(tokens: int) -> dict[str, Any]:
    from shoal.bench.decode import run

    return run(tokens)


def _hops(tokens: int) -> dict[str, Any]:
    from shoal.bench.hops import run

    return run(tokens)


def _placement(tokens: int) -> dict[str, Any]:
    from shoal.bench.placement import run

    return run(tokens)


BENCHES: dict[str, Callable[[int], dict[str, Any]]] = {"decode": _decode, "hops": _hops, "placement": _placement}
