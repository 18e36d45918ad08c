"""What sampling keeps for any logits and options."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model.nn.sampling import candidates, sample
from shoal.model.nn.sampling_params import SamplingParams

values = st.one_of(st.floats(-20, 20, width=32), st.sampled_from([0.0, 1.0, -1.0, 3e38, -3e38]))
logit_lists = st.lists(values, min_size=1, max_size=60)
options = st.fixed_dictionaries(
    {
        "temperature": st.one_of(st.floats(0.05, 5), st.just(1e-300)),
        "top_k": st.integers(0, 8),
        "top_p": st.floats(0.01, 1),
        "min_p": st.floats(0, 1),
    }
)


def obvious(scores: list[float], params: SamplingParams) -> list[int]:
    """The candidates by the definition: sort all tokens, the likeliest first, and cut."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    order = order[: params.top_k or len(order)]
    with np.errstate(over="ignore"):
        weights = [float(np.exp((np.float64(scores[token]) - max(scores)) / params.temperature)) for token in order]
    if params.top_p < 1:
        before = [sum(weights[:place]) for place in range(len(weights))]
        order = [token for token, mass in zip(order, before, strict=True) if mass < params.top_p * sum(weights)]
    return sorted(token for token, weight in zip(order, weights, strict=False) if weight >= params.min_p)


@settings(deadline=None)
@given(logit_lists, options)
def test_the_candidates_are_those_of_the_definition(logits: list[float], given_options: dict[str, Any]) -> None:
    """The fast selection gives what sorting everything gives, ties included."""
    params = SamplingParams(**given_options)
    tokens, weights = candidates(np.array(logits), params)
    assert tokens.tolist() == obvious(logits, params)
    assert weights.max() == 1


@settings(deadline=None)
@given(logit_lists, options, st.integers(0, 2**64 - 1), st.integers(0, 2**31))
def test_a_draw_is_a_candidate_and_is_drawn_again(
    logits: list[float], given_options: dict[str, Any], seed: int, position: int
) -> None:
    """Whatever was drawn in between; and the best alone is the greedy choice."""
    params, tensor = SamplingParams(**given_options), torch.tensor(logits)
    token = sample(tensor, params, seed, position, [])
    assert token in candidates(tensor.double().numpy(), params)[0]
    sample(tensor, params, seed, position + 1, [])
    assert sample(tensor, params, seed, position, []) == token
    best = SamplingParams(temperature=params.temperature, top_k=1)
    assert sample(tensor, best, seed, position, []) == sample(tensor, SamplingParams(), seed, position, [])


@settings(deadline=None)
@given(logit_lists, st.data())
def test_greedy_is_the_best_after_the_penalty(logits: list[float], data: st.DataObject) -> None:
    """By the definition, one token at a time; of equal ones the lowest."""
    history = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=10))
    penalty = data.draw(st.floats(0.1, 3))
    scores = [float(np.float32(value)) for value in logits]
    for token in set(history):
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    chosen = sample(torch.tensor(logits), SamplingParams(repetition_penalty=penalty), 0, 0, history)
    assert chosen == scores.index(max(scores))
