"""From logits to a token: greedy or drawn, the same wherever and whenever it is done again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shoal.errors import PeerError
from shoal.model.nn.sampling_params import SamplingParams

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]


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
