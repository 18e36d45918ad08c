"""Statistics of inputs, and the factor of their inverse."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import CheckpointError
from shoal.quantize.hessian import DAMPING, InputStatistics, factored, without_feedback


def hessian(inputs: int = 48, rows: int = 400, seed: int = 1) -> torch.Tensor:
    """Of inputs that hang together."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=generator)
    statistics = InputStatistics(inputs)
    for some in torch.split(torch.randn(rows, inputs, generator=generator) @ mixed, 100):
        statistics.add(torch.nn.functional.pad(some, (0, 16)))
    assert statistics.rows == rows
    return statistics.products / rows


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    """UᵀU (H + damping) is one, in an order of falling activations."""
    given = hessian()
    factor = factored(given)
    assert bool((given.diagonal()[factor.order].diff() <= 0).all())
    damped = given[factor.order][:, factor.order] + DAMPING * given.diagonal().mean() * torch.eye(48)
    assert torch.allclose(factor.upper.T @ factor.upper @ damped, torch.eye(48), atol=2e-3)
    assert torch.equal(factor.upper, factor.upper.triu())


def test_a_singular_hessian_is_damped_until_it_has_an_inverse() -> None:
    """Fewer rows than inputs, one direction alone, and none at all."""
    one = torch.ones(32, 1)
    for given in (hessian(48, 5), one @ one.T, torch.zeros(32, 32)):
        assert bool(torch.isfinite(factored(given).upper).all())


def test_without_feedback_no_input_makes_up_for_another() -> None:
    """The factor has a diagonal alone, by which each input counts as often as it is active."""
    given = hessian()
    factor = without_feedback(given)
    assert torch.equal(factor.upper, factor.upper.diagonal().diag())
    damping = DAMPING * given.diagonal().mean()
    assert torch.allclose(factor.weights, given.diagonal()[factor.order] + damping)


def test_rows_that_are_not_finite_are_refused() -> None:
    """By an error that names the checkpoint."""
    given = hessian()
    given[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        factored(given)
