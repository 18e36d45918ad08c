"""Sampling: the same choice wherever it is made again, and the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import PeerError, UsageError
from shoal.nn.sampling import SamplingParams, candidates, sample, uniform

logit_lists = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=60)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("stop", ("", "x")),
    ],
)
def test_senseless_values_are_named(field: str, value: object) -> None:
    """The error says which field cannot be what."""
    with pytest.raises(UsageError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_greedy_ties_go_to_the_lower_id() -> None:
    """Also after the largest value appears again."""
    assert sample(torch.tensor([0.0, 3.0, 1.0, 3.0]), SamplingParams(), 0, 0, []) == 1


def test_numbers_that_are_not_finite_are_a_peers_fault() -> None:
    """A hop that computes nonsense is not hidden by sampling."""
    for bad in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(PeerError):
            sample(torch.tensor([0.0, bad]), SamplingParams(), 0, 0, [])


def test_draws_follow_the_probabilities() -> None:
    """Chi-square over 4,000 positions of one seed; 9 degrees of freedom, 99.9 % quantile 27.9."""
    logits = torch.linspace(-1, 1.5, 10)
    params = SamplingParams(temperature=0.8)
    drawn = np.bincount([sample(logits, params, 5, position, []) for position in range(4000)], minlength=10)
    expected = 4000 * torch.softmax(logits.double() / 0.8, 0).numpy()
    assert ((drawn - expected) ** 2 / expected).sum() < 27.9


def test_the_draw_depends_on_seed_and_position_alone() -> None:
    """Numbers are in [0, 1), differ between positions and seeds, and stay what they are."""
    numbers = [uniform(seed, position) for seed in range(20) for position in range(20)]
    assert len(set(numbers)) == 400
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(1, 2) == uniform(1, 2) != uniform(2, 1)


def reference(logits: torch.Tensor, params: SamplingParams, history: list[int]) -> set[int]:
    """The tokens that transformers' processors leave."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(params.repetition_penalty)] if history else [])
    chain.append(TemperatureLogitsWarper(params.temperature))
    chain.extend([TopKLogitsWarper(params.top_k)] if params.top_k else [])
    chain.extend([TopPLogitsWarper(params.top_p)] if params.top_p < 1 else [])
    chain.extend([MinPLogitsWarper(params.min_p)] if params.min_p else [])
    scores = chain(torch.tensor([history], dtype=torch.long), logits[None])
    return set(torch.isfinite(scores[0]).nonzero().flatten().tolist())


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
        {"repetition_penalty": 1.7},
    ],
)
def test_candidates_are_those_of_transformers(options: dict[str, float]) -> None:
    """On random logits, with a temperature and a history."""
    params = SamplingParams(temperature=0.7, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        logits = torch.randn(50, generator=generator) * 2
        history = [3, 9, 3, 41] if params.repetition_penalty != 1 else []
        scores = logits.double().numpy()
        if history:
            from shoal.nn.sampling import _penalised

            scores = _penalised(scores, history, params.repetition_penalty)
        ours = set(candidates(scores / params.temperature, params)[0].tolist())
        assert ours == reference(logits, params, history)


@settings(deadline=None)
@given(logit_lists, st.integers(0, 2**40), st.integers(0, 5), st.floats(0.1, 1), st.floats(0, 1), st.integers(0, 99))
def test_whatever_is_drawn_was_a_candidate(
    logits: list[float], seed: int, top_k: int, top_p: float, min_p: float, position: int
) -> None:
    """At least one token always remains, and the draw is one of them; the best alone is greedy."""
    params = SamplingParams(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p)
    tensor = torch.tensor(logits)
    allowed = candidates(tensor.double().numpy() / 0.9, params)[0]
    token = sample(tensor, params, seed, position, [])
    assert token in allowed
    assert sample(tensor, params, seed, position, []) == token
    assert sample(tensor, SamplingParams(temperature=0.9, top_k=1), seed, position, []) == int(tensor.argmax())
