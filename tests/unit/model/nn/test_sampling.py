"""Sampling by examples and against transformers; tests/property/test_sampling.py has what holds always."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shoal.errors import PeerError
from shoal.model.nn.sampling import candidates, penalised, sample, uniform
from shoal.model.nn.sampling_params import SamplingParams


def test_greedy_ties_go_to_the_lower_id() -> None:
    """Also after the largest value appears again."""
    assert sample(torch.tensor([0.0, 3.0, 1.0, 3.0]), SamplingParams(), 0, 0, []) == 1


def test_ties_at_every_cut_go_to_the_lower_id() -> None:
    """top-k and top-p keep the first of equal tokens."""
    scores = np.array([1.0, 2.0, 1.0, 2.0, 1.0])
    assert candidates(scores, SamplingParams(temperature=1, top_k=3))[0].tolist() == [0, 1, 3]
    assert candidates(np.zeros(10), SamplingParams(temperature=1, top_p=0.35))[0].tolist() == [0, 1, 2, 3]


def test_a_repeated_token_is_penalised_once() -> None:
    """Divided above zero, multiplied below, whatever the number of its appearances."""
    scores = np.array([4.0, -4.0, 0.0, 3.0])
    assert penalised(scores, [0, 1, 1, 2, 0], 2.0).tolist() == [2.0, -8.0, 0.0, 3.0]
    assert sample(torch.tensor([4.0, 3.0]), SamplingParams(repetition_penalty=2), 0, 0, [0]) == 1


def test_numbers_that_are_not_finite_are_a_peers_fault() -> None:
    """A hop that computes nonsense is not hidden by sampling."""
    for bad in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(PeerError, match="not finite"):
            sample(torch.tensor([0.0, bad]), SamplingParams(), 0, 0, [])


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 999.0])
def test_extreme_temperatures(temperature: float) -> None:
    """The coldest is greedy but for ties, the hottest uniform; nothing overflows."""
    logits = torch.tensor([-3e38, 1.0, 3e38, 2.0])
    tokens = {sample(logits, SamplingParams(temperature=temperature), 3, position, []) for position in range(50)}
    assert tokens == {2}


@pytest.mark.parametrize(
    ("options", "seed"),
    [({}, 5), ({}, 6), ({"top_k": 6}, 7), ({"top_p": 0.8}, 8), ({"min_p": 0.3}, 9), ({"repetition_penalty": 1.5}, 10)],
)
def test_draws_follow_the_probabilities(options: dict[str, Any], seed: int) -> None:
    """Chi-square over 4,000 positions of one seed; 27.9 is the 99.9 % quantile for 9 degrees of freedom, the most here."""
    logits = torch.linspace(-1, 1.5, 10)
    params = SamplingParams(temperature=0.8, **options)
    drawn = np.bincount([sample(logits, params, seed, position, [8]) for position in range(4000)], minlength=10)
    scores = reference(logits, params, [8])
    expected = 4000 * torch.softmax(scores.double(), 0).numpy()
    kept = expected > 0
    assert drawn[~kept].sum() == 0
    assert ((drawn[kept] - expected[kept]) ** 2 / expected[kept]).sum() < 27.9


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    """Numbers are in [0, 1), differ between positions and seeds, and are the same on every machine."""
    numbers = [uniform(seed, position) for seed in range(20) for position in range(20)]
    assert len(set(numbers)) == 400
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(1, 2) != uniform(2, 1)
    assert uniform(0, 0) == 0.2429423477979301


def reference(logits: torch.Tensor, params: SamplingParams, history: list[int]) -> torch.Tensor:
    """What transformers' processors, in the order of its generate(), make of logits."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(params.repetition_penalty)] if history else [])
    chain.append(TemperatureLogitsWarper(float(params.temperature)))
    chain.extend([TopKLogitsWarper(params.top_k)] if params.top_k else [])
    chain.extend([TopPLogitsWarper(params.top_p)] if params.top_p < 1 else [])
    chain.extend([MinPLogitsWarper(params.min_p)] if params.min_p else [])
    scores: torch.Tensor = chain(torch.tensor([history], dtype=torch.long), logits[None])[0]
    return scores


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 7},
        {"top_k": 500},
        {"top_p": 0.8},
        {"top_p": 0.05},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6, "top_p": 0.7},
    ],
)
def test_candidates_are_those_of_transformers(options: dict[str, Any]) -> None:
    """The same tokens with the same probabilities on random logits, with a temperature and a history."""
    params = SamplingParams(temperature=0.7, **options)
    generator = torch.Generator().manual_seed(3)
    for _ in range(30):
        logits = torch.randn(300, generator=generator) * 3
        history = torch.randint(300, (40,), generator=generator).tolist()
        tokens, weights = candidates(penalised(logits.double().numpy(), history, params.repetition_penalty), params)
        theirs = torch.softmax(reference(logits, params, history).double(), 0).numpy()
        assert tokens.tolist() == np.flatnonzero(theirs).tolist()
        np.testing.assert_allclose(weights / weights.sum(), theirs[tokens], rtol=1e-5)
