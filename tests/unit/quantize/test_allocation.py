"""Bits for each layer, against all choices there are."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.quantize.allocation import GAP, Choice, allocate

OPTIONS = st.lists(st.builds(Choice, st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=5)


def brute_force(layers: list[list[Choice]], budget: int) -> float | None:
    """The least error of all choices within the budget."""
    return min(
        (
            sum(choice.error for choice in chosen)
            for chosen in itertools.product(*layers)
            if sum(choice.bits for choice in chosen) <= budget
        ),
        default=None,
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=5), st.integers(1, 160))
def test_no_choice_is_better_by_more_than_the_gap(layers: list[list[Choice]], budget: int) -> None:
    """The error is that of the choice, within the budget, and the bound is one."""
    least, found = brute_force(layers, budget), allocate(layers, budget)
    if least is None:
        assert found is None
        return
    assert found is not None
    chosen = [options[index] for options, index in zip(layers, found.chosen, strict=True)]
    assert sum(choice.bits for choice in chosen) == found.bits <= budget
    assert abs(sum(choice.error for choice in chosen) - found.error) < 1e-9
    assert found.error * (1 - GAP) <= least + 1e-9
    assert found.bound <= least + 1e-9


def test_many_layers_are_within_the_stated_gap() -> None:
    """As many layers and options as a large model has: near the bound, and the budget is used."""
    layers = [
        [Choice(1000 * bits + 7 * layer % 13, (1 + layer % 11) * 4.0**-bits) for bits in range(2, 9)]
        for layer in range(560)
    ]
    budget = 560 * 3500
    found = allocate(layers, budget)
    assert found is not None
    assert found.error - found.bound <= GAP * found.error
    assert 0.99 * budget <= found.bits <= budget


def test_a_budget_for_everything_takes_the_best() -> None:
    """Nothing is left out then, and options that cost more for a larger error never are taken."""
    layers = [[Choice(10, 1.0), Choice(20, 2.0), Choice(30, 0.5)]] * 3
    found = allocate(layers, 1000)
    assert found is not None
    assert found.chosen == (2, 2, 2)
    assert found.bound == found.error == 1.5
