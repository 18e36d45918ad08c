"""Options of a layer: the best mix of widths at each price of a bit."""

from __future__ import annotations

import itertools

import numpy as np

from shoal.quantize.layer_options import layer_options
from shoal.quantize.row_groups import WIDTHS, MatrixShape


def table(rng: np.random.Generator, groups: int) -> list[list[float]]:
    """Errors that fall with the width and, by and large, with the place."""
    sizes = np.sort(rng.lognormal(0, 1.5, groups))[::-1]
    return [[float(size * rng.uniform(0.8, 1.2) * 4.0**-bits) for bits in WIDTHS] for size in sizes]


def test_widths_never_rise_and_cover_all_inputs() -> None:
    """What a reader of the format needs."""
    shape = MatrixShape(160, 96)
    for option in layer_options(
        shape, {64: table(np.random.default_rng(1), 3), 32: table(np.random.default_rng(2), 5)}
    ):
        widths = [group.bits for group in option.groups]
        assert widths == sorted(widths, reverse=True)
        assert sum(group.inputs for group in option.groups) == 160


def test_at_every_price_of_a_bit_some_option_is_as_good_as_any_mix() -> None:
    """Against every mix of four groups there is: error and price together are at most a little above the least."""
    losses = table(np.random.default_rng(3), 4)
    options = layer_options(MatrixShape(128, 64), {32: losses})
    mixes = [
        (sum(losses[group][width] for group, width in enumerate(mix)), sum(32 * WIDTHS[width] for width in mix))
        for mix in itertools.combinations_with_replacement(range(len(WIDTHS)), 4)
    ]
    for price in np.geomspace(1e-7, 1e-2, 40):
        least = min(error + price * bits for error, bits in mixes)
        found = min(option.error + price * sum(group.bits * 32 for group in option.groups) for option in options)
        assert least - 1e-12 <= found <= 1.02 * least


def test_each_option_is_there_once() -> None:
    """No two have the same groups."""
    options = layer_options(MatrixShape(96, 64), {32: table(np.random.default_rng(5), 3)})
    assert len({option.groups for option in options}) == len(options)


def test_groups_without_any_error_have_the_flat_options() -> None:
    """A matrix of zeros."""
    options = layer_options(MatrixShape(64, 32), {64: [[0.0] * len(WIDTHS)]})
    assert {option.groups[0].bits for option in options} == set(WIDTHS)
