"""From logits to a token: greedy or drawn, the same wherever and whenever it is done again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shoal.errors import PeerError, UsageError

Floats = NDArray[np.float64]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens and when to stop. A temperature of 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.

    `seed` None draws a fresh one per generation. Raises UsageError for a value that makes no sense.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": self.max_tokens >= 1,
            "temperature": 0 <= self.temperature < 1000,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < 1000,
            "seed": self.seed is None or 0 <= self.seed < 1 << 64,
            "stop": all(self.stop),
        }
        for name, sound in checks.items():
            if not sound:
                raise UsageError(f"{name} cannot be {getattr(self, name)!r}")


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits that depends on the seed and the position alone."""
    data = seed.to_bytes(8, "little") + position.to_bytes(8, "little")
    digest = hashlib.blake2b(data, digest_size=8, person=b"shoal sample").digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def sample(logits: Tensor, params: SamplingParams, seed: int, position: int, history: Sequence[int]) -> int:
    """The token for `position` from logits [vocab]; `history` are the tokens before it.

    Penalty, temperature, top-k, top-p and min-p act in this order, as transformers' processors do; equal logits go to the
    lower token id. Arithmetic is fp64. Raises PeerError when a logit is not finite.
    """
    scores: Floats = logits.numpy().astype(np.float64)
    if not np.isfinite(scores).all():
        raise PeerError("the model's output is not finite: some hop computed something that cannot be")
    if params.repetition_penalty != 1.0 and history:
        scores = _penalised(scores, history, params.repetition_penalty)
    if params.temperature == 0:
        return int(scores.argmax())
    tokens, weights = candidates(scores / params.temperature, params)
    bounds = np.cumsum(weights)
    drawn = uniform(seed, position) * bounds[-1]
    return int(tokens[min(int(np.searchsorted(bounds, drawn, side="right")), len(tokens) - 1)])


def _penalised(scores: Floats, history: Sequence[int], penalty: float) -> Floats:
    """CTRL's repetition penalty (arXiv:1909.05858): positive logits divided, negative ones multiplied."""
    seen = np.unique(np.asarray(history))
    scores = scores.copy()
    scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    return scores


def candidates(scores: Floats, params: SamplingParams) -> tuple[NDArray[np.int64], Floats]:
    """The tokens that may be drawn, most likely first, and their weights; at least one."""
    count = min(params.top_k or len(scores), len(scores))
    if count < len(scores):
        # Whoever equals the last of the first k competes for its place by id.
        threshold = np.partition(scores, -count)[-count]
        pool = np.flatnonzero(scores >= threshold)
    else:
        pool = np.arange(len(scores))
    order = pool[np.argsort(-scores[pool], kind="stable")][:count]
    weights = np.exp(scores[order] - scores[order[0]])
    if params.top_p < 1:
        before = np.cumsum(weights) - weights
        kept = before < params.top_p * weights.sum()  # nucleus sampling, arXiv:1904.09751
        order, weights = order[kept], weights[kept]
    if params.min_p > 0:
        kept = weights >= params.min_p  # the most likely has weight 1 (arXiv:2407.01082)
        order, weights = order[kept], weights[kept]
    return order, weights
