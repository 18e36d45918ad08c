"""Rotary position embeddings (arXiv:2104.09864), with factors that the configuration and the granted length fix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.kv.prefix import Positions


class RopeConfig(msgspec.Struct, frozen=True):
    """`kind` is one of KINDS; the numbers are called as HF calls them.

    "linear" is arXiv:2306.15595, "llama3" Llama 3.1's by wavelength, "yarn" arXiv:2309.00071, "dynamic" NTK scaling by length,
    "longrope" arXiv:2402.13753.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    factors: tuple[float, ...] = ()
    """Divisors of the frequencies given one by one, as a GGUF file or "longrope" does; empty: computed from the rest."""

    long_factors: tuple[float, ...] = ()
    """Those of "longrope" for a session that was granted more than `original_max_positions`."""

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    """Cosine and sine are multiplied by this."""

    @property
    def by_length(self) -> bool:
        """Whether the factors depend on what a session was granted. They never depend on how long it is at the moment."""
        return self.kind in ("dynamic", "longrope")


def cache_positions(ropes: Sequence[RopeConfig]) -> Positions:
    """What a prefix cache must know of the rotary embeddings of all blocks."""
    return Positions(msgspec.msgpack.encode(list(ropes)), any(rope.by_length for rope in ropes))


KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


def frequencies(config: RopeConfig, dim: int, granted_tokens: int = 0) -> Tensor:
    """Radians per position for each pair, [dim / 2] in fp32. `granted_tokens` only matters where `by_length` is true."""
    base = _powers(config.theta, dim)
    if config.kind == "longrope" and granted_tokens > config.original_max_positions:
        return base / torch.tensor(config.long_factors)
    if config.factors:
        return base / torch.tensor(config.factors)
    if config.kind == "linear":
        return base / config.factor
    if config.kind == "llama3":
        return torch.tensor([_llama3(frequency, config) for frequency in base.tolist()])
    if config.kind == "yarn":
        return _yarn(base, config, dim)
    if config.kind == "dynamic":
        return _powers(_stretched(config, dim, granted_tokens), dim)
    return base


def _powers(theta: float, dim: int) -> Tensor:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / max(dim, 1)
    return torch.as_tensor(1.0 / (theta**exponents))


def _stretched(config: RopeConfig, dim: int, granted_tokens: int) -> float:
    """The base for a length, once per session: NTK scaling, whose factor is 1 up to the original length."""
    ratio = max(granted_tokens, config.original_max_positions) / config.original_max_positions
    return float(config.theta * (config.factor * ratio - (config.factor - 1)) ** (dim / (dim - 2)))


def _llama3(frequency: float, config: RopeConfig) -> float:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / frequency
    if wavelength < config.original_max_positions / config.high_freq_factor:
        return frequency
    if wavelength > config.original_max_positions / config.low_freq_factor:
        return frequency / config.factor
    smooth = (config.original_max_positions / wavelength - config.low_freq_factor) / (
        config.high_freq_factor - config.low_freq_factor
    )
    return (1 - smooth) * frequency / config.factor + smooth * frequency


def _yarn(base: Tensor, config: RopeConfig, dim: int) -> Tensor:
    """Pairs that turn more than `beta_fast` times in the original length are kept, fewer than `beta_slow` stretched."""

    def pair(turns: float) -> float:
        return dim * math.log(config.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = pair(config.beta_fast), pair(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    kept = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return base / config.factor * (1 - kept) + base * kept


class Rope:
    """Cosines and sines for positions. The same bits for a position whatever else is asked for with it."""

    def __init__(self, config: RopeConfig, dim: int) -> None:
        self._config = config
        self._pairs = dim // 2
        self._known: dict[int, NDArray[np.float32]] = {}
        self._runs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def _frequency(self, granted_tokens: int) -> NDArray[np.float32]:
        """Frequencies in whole vectors, so that no tail differs."""
        key = granted_tokens if self._config.by_length else 0
        if key not in self._known:
            frequency = np.zeros(-(-self._pairs // 8) * 8, dtype=np.float32)
            frequency[: self._pairs] = frequencies(self._config, 2 * self._pairs, key).numpy()
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = frequency
        return self._known[key]

    def angles(self, positions: Tensor, granted_tokens: int = 0) -> tuple[Tensor, Tensor]:
        """Positions [n] → cos, sin [n, dim / 2] in fp32, on the positions' device, for a session of `granted_tokens`.

        The angle is rounded to fp32, as everybody does; its cosine is taken in fp64, so that the last bit does not depend
        on the machine's vector width.
        """
        angle = positions.cpu().numpy().astype(np.float32)[:, None] * self._frequency(granted_tokens)
        wide, factor = angle.astype(np.float64), self._config.attention_factor
        cos, sin = (factor * np.cos(wide)).astype(np.float32), (factor * np.sin(wide)).astype(np.float32)
        both = torch.from_numpy(np.stack([cos, sin])[..., : self._pairs]).contiguous().to(positions.device)
        return both[0], both[1]

    def slice(self, position: int, count: int, granted_tokens: int = 0) -> tuple[Tensor, Tensor]:
        """The same for `count` positions from one on, on the CPU; sessions that decode find theirs computed already."""
        first, last = position // RUN, (position + count - 1) // RUN
        runs = [self._run(run, granted_tokens) for run in range(first, last + 1)]
        if len(runs) > 1:
            cos, sin = (torch.cat(each) for each in zip(*runs, strict=True))
        else:
            cos, sin = runs[0]
        here = slice(position - first * RUN, position - first * RUN + count)
        return cos[here], sin[here]

    def _run(self, run: int, granted_tokens: int) -> tuple[Tensor, Tensor]:
        key = granted_tokens if self._config.by_length else 0, run
        if key not in self._runs:
            if len(self._runs) >= MAX_RUNS:
                self._runs.clear()
            self._runs[key] = self.angles(torch.arange(run * RUN, (run + 1) * RUN), granted_tokens)
        return self._runs[key]


MAX_KNOWN = 64
"""Granted lengths whose frequencies are kept."""

RUN = 128
"""Positions whose angles are computed together and kept."""

MAX_RUNS = 512
"""Of those: at most 64 MB for heads of 128 dimensions."""


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [n, heads, dim] turned by angles [n, r]: dimension i < r is paired with i + r, those from 2r on are kept.

    Elementwise only.
    """
    half = cos.shape[-1]
    first, second, kept = torch.split(heads, [half, half, heads.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, kept], dim=-1)
