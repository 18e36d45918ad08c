"""Rotary position embeddings, with the factors fixed by the configuration (arXiv:2104.09864)."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import torch
from torch import Tensor


class RopeConfig(msgspec.Struct, frozen=True):
    """`kind` is "default", "linear" (arXiv:2306.15595) or "llama3" (Llama 3.1's by wavelength); the rest as HF names it."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    factors: tuple[float, ...] = ()
    """Divisors of the frequencies given one by one, as a GGUF file does; empty: computed from the fields above."""


def frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position for each pair, [head_dim / 2] in fp32."""
    base = 1.0 / (config.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    if config.factors:
        return base / torch.tensor(config.factors)
    if config.kind == "linear":
        return base / config.factor
    if config.kind == "llama3":
        return torch.tensor([_llama3(frequency, config) for frequency in base.tolist()])
    return base


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


class Rope:
    """Cosines and sines for positions. The same bits for a position whatever else is asked for with it."""

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        self._pairs = head_dim // 2
        frequency = np.zeros(-(-self._pairs // 8) * 8, dtype=np.float32)  # whole vectors, so that no tail differs
        frequency[: self._pairs] = frequencies(config, head_dim).numpy()
        self._frequency = frequency

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [n] → cos, sin [n, head_dim / 2] in fp32, on the positions' device.

        The angle is rounded to fp32, as everybody does; its cosine is taken in fp64, so that the last bit does not depend
        on the machine's vector width.
        """
        angle = positions.cpu().numpy().astype(np.float32)[:, None] * self._frequency
        wide = angle.astype(np.float64)
        cos, sin = np.cos(wide).astype(np.float32), np.sin(wide).astype(np.float32)
        both = torch.from_numpy(np.stack([cos, sin])[..., : self._pairs]).contiguous().to(positions.device)
        return both[0], both[1]


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [n, heads, dim] turned by angles [n, dim/2]; dimension i is paired with i + dim/2. Elementwise only."""
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
