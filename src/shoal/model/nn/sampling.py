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
Tokens = NDArray[np.int64]

MIN_PENALTY = 1e-3
"""The least repetition penalty: a smaller one could turn a finite logit into an infinite one."""


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
            "max_tokens": (_whole(self.max_tokens) and self.max_tokens >= 1, "a whole number from 1"),
            "temperature": (_number(self.temperature) and 0 <= self.temperature < 1000, "a number from 0 to 1000"),
            "top_k": (_whole(self.top_k) and self.top_k >= 0, "a whole number from 0"),
            "top_p": (_number(self.top_p) and 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            "min_p": (_number(self.min_p) and 0 <= self.min_p <= 1, "a number from 0 to 1"),
            "repetition_penalty": (
                _number(self.repetition_penalty) and MIN_PENALTY <= self.repetition_penalty < 1000,
                f"a number from {MIN_PENALTY} to 1000",
            ),
            "seed": (
                self.seed is None or (_whole(self.seed) and 0 <= self.seed < 1 << 64),
                "None or a whole number of 64 bits",
            ),
            "stop": (
                isinstance(self.stop, tuple) and all(isinstance(text, str) and text for text in self.stop),
                "a tuple of strings that are not empty",
            ),
            "ignore_eos": (isinstance(self.ignore_eos, bool), "True or False"),
        }
        for name, (sound, form) in checks.items():
            if not sound:
                raise UsageError(f"{name} cannot be {getattr(self, name)!r}: it is {form}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, float) or _whole(value)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits that depends on the seed and the position alone."""
    data = seed.to_bytes(8, "little") + position.to_bytes(8, "little")
    digest = hashlib.blake2b(data, digest_size=8, person=b"shoal sample").digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def sample(logits: Tensor, params: SamplingParams, seed: int, position: int, history: Sequence[int]) -> int:
    """The token for `position` from logits [vocab]; `history` are the tokens before it, the prompt's too.

    Penalty, temperature, top-k, top-p and min-p act in this order, as transformers' processors do; equal logits go to the
    lower token id. Arithmetic is fp64. Raises PeerError when a logit is not finite.
    """
    given = logits.numpy()
    if not np.isfinite(given).all():
        raise PeerError("hidden states came back not finite: some hop computed something that cannot be")
    if params.temperature == 0 and params.repetition_penalty == 1:
        return int(given.argmax())
    scores = penalised(given.astype(np.float64), history, params.repetition_penalty)
    if params.temperature == 0:
        return int(scores.argmax())
    tokens, weights = candidates(scores, params)
    bounds = np.cumsum(weights)
    # The draw is below the last bound, and a weight of zero moves no bound: it is never found.
    drawn = uniform(seed, position) * bounds[-1]
    return int(tokens[np.searchsorted(bounds, drawn, side="right")])


def penalised(scores: Floats, history: Sequence[int], penalty: float) -> Floats:
    """CTRL's repetition penalty (arXiv:1909.05858): positive scores divided, others multiplied, once per token seen."""
    if penalty == 1 or not history:
        return scores
    seen = np.unique(np.asarray(history, dtype=np.int64))
    scores = scores.copy()
    scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    return scores


def candidates(scores: Floats, params: SamplingParams) -> tuple[Tokens, Floats]:
    """The tokens that may be drawn, in ascending order, and their weights [the likeliest has 1]; at least one.

    The temperature must not be 0.
    """
    best = scores.max()
    if 0 < params.top_k < len(scores):
        tokens = _largest(scores, params.top_k)
        scores = scores[tokens]
    else:
        tokens = np.arange(len(scores))
    # The best is subtracted first: a tiny temperature gives weights of zero, never an overflow.
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((scores - best) / params.temperature)
    if params.top_p < 1:
        kept = _largest(scores, _nucleus(weights, params.top_p))
        tokens, weights = tokens[kept], weights[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= params.min_p)  # arXiv:2407.01082
        tokens, weights = tokens[kept], weights[kept]
    return tokens, weights


def _largest(scores: Floats, count: int) -> Tokens:
    """The indices of the `count` largest scores, ascending; of equal ones the lower indices."""
    threshold = np.partition(scores, -count)[-count]
    chosen = scores > threshold
    equal = np.flatnonzero(scores == threshold)
    chosen[equal[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


def _nucleus(weights: Floats, top_p: float) -> int:
    """How many of the likeliest tokens are needed for a probability of `top_p` (arXiv:1904.09751)."""
    total = weights.sum()
    # Tokens below this bound have less than 1 - top_p together: the nucleus lies above it, and only that is sorted.
    likely = np.sort(weights[weights >= (1 - top_p) * total / len(weights)])[::-1]
    return min(int(np.searchsorted(np.cumsum(likely), top_p * total, side="left")) + 1, len(likely))
