"""Benchmarks: each a function of a size that returns a dictionary ready for JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Size(NamedTuple):
    """How much to measure: tokens to decode, runs to make (None: as each bench likes), the seed of what chance decides.

    `write` is the page of docs that a bench writes, if it has one (families, first-day); `model` the GGUF file that engine
    measures, SmolLM2-135M if None; `family` the only one that families measures, all of them if None. `calls` and `threads`
    are soak's, `only` says which attacks, or which of quant's methods. `bits`, `rows`, `calibration_rows` and `folder` (where
    finished parts are kept) are quant's.
    """

    tokens: int = 256
    runs: int | None = None
    seed: int = 1
    write: Path | None = None
    model: Path | None = None
    family: str | None = None
    calls: int = 2000
    threads: int = 6
    only: str | None = None
    bits: str = "2.5,3,3.5,4,5"
    rows: int = 40
    calibration_rows: int = 32
    folder: Path | None = None


def _decode(size: Size) -> dict[str, Any]:
    from bench.decode import run

    return run(size.tokens, size.runs or 5)


def _batch(size: Size) -> dict[str, Any]:
    from bench.batch import run

    return run(size.tokens, size.runs or 5)


def _longcontext(size: Size) -> dict[str, Any]:
    from bench.longcontext import run

    return run(size.runs or 3)


def _hops(size: Size) -> dict[str, Any]:
    from bench.hops import run

    return run(size.tokens)


def _fail_over(size: Size) -> dict[str, Any]:
    from bench.heal import run

    return run(size.runs or 200, size.seed)


def _attacks(size: Size) -> dict[str, Any]:
    from bench.attacks import run

    return run(size.only)


def _restarts(size: Size) -> dict[str, Any]:
    from bench.restarts import run

    return run(size.runs or 3, size.seed)


def _interrupts(size: Size) -> dict[str, Any]:
    from bench.interrupts import run

    return run(size.runs or 100, size.seed)


def _families(size: Size) -> dict[str, Any]:
    from bench.families import run

    return run(size.write, size.family)


def _churn(size: Size) -> dict[str, Any]:
    from bench.churn import run

    return run(size.runs or 5, size.seed)


def _opening(size: Size) -> dict[str, Any]:
    from bench.opening import run

    return run(size.runs or 5, size.seed)


def _moves(size: Size) -> dict[str, Any]:
    from bench.moves import run

    return run(size.runs or 100, size.seed)


def _placement(size: Size) -> dict[str, Any]:
    from bench.placement import run

    return run(size.tokens)


def _discovery(size: Size) -> dict[str, Any]:
    from bench.discovery import run

    return run()


def _kv(size: Size) -> dict[str, Any]:
    from bench.kv import run

    return run(max(size.tokens, 512), size.runs or 8)


def _prefix(size: Size) -> dict[str, Any]:
    from bench.prefix import run

    return run(size.runs or 5)


def _steps(size: Size) -> dict[str, Any]:
    from bench.steps import run

    return run(size.tokens)


def _engine(size: Size) -> dict[str, Any]:
    from bench.engine import run

    return run(size.tokens, size.runs or 5, size.model)


def _start(size: Size) -> dict[str, Any]:
    from bench.start import run

    return run(size.runs or 10)


def _soak(size: Size) -> dict[str, Any]:
    from bench.soak import run

    return run(size.calls, size.threads, size.seed)


def _quant(size: Size) -> dict[str, Any]:
    from bench.quant import run

    targets = tuple(float(one) for one in size.bits.split(","))
    return run(targets, size.rows, size.calibration_rows, size.only, size.folder)


def _first_day(size: Size) -> dict[str, Any]:
    from bench.first_day import run

    return run(size.write)


BENCHES: dict[str, Callable[[Size], dict[str, Any]]] = {
    "engine": _engine,
    "steps": _steps,
    "decode": _decode,
    "families": _families,
    "hops": _hops,
    "batch": _batch,
    "longcontext": _longcontext,
    "heal": _fail_over,
    "attacks": _attacks,
    "restarts": _restarts,
    "interrupts": _interrupts,
    "churn": _churn,
    "opening": _opening,
    "moves": _moves,
    "placement": _placement,
    "discovery": _discovery,
    "kv": _kv,
    "quant": _quant,
    "prefix": _prefix,
    "start": _start,
    "soak": _soak,
    "first-day": _first_day,
}
