"""How inputs are cut into groups, and what they cost."""

from __future__ import annotations

import pytest

from shoal.quantize.row_groups import MatrixShape, by_shares, cut, runs, stored_bits, uniform


def test_the_last_group_takes_what_is_left() -> None:
    """Whole groups first."""
    assert cut(160, 64) == (64, 64, 32)
    assert cut(128, 64) == (64, 64)
    assert cut(32, 64) == (32,)


def test_shares_round_up_to_whole_groups() -> None:
    """ExLlama's rule: 5 % of 576 inputs are a group of 64, and the last width has the rest."""
    assert runs(by_shares(576, ((3, 0.05), (2, 0.95)), {3: 64, 2: 64})) == [(3, 64, 1), (2, 64, 8)]
    mixed = by_shares(1536, ((8, 0.05), (4, 0.1), (3, 0.85)), {8: 32, 4: 128, 3: 128})
    assert runs(mixed) == [(8, 32, 3), (4, 128, 2), (3, 128, 9), (3, 32, 1)]
    assert sum(group.inputs for group in mixed) == 1536


@pytest.mark.parametrize("inputs", [32, 64, 96, 160, 4096])
def test_shares_cover_all_inputs(inputs: int) -> None:
    """However small a matrix is."""
    groups = by_shares(inputs, ((8, 0.15), (6, 0.85)), {8: 128, 6: 128})
    assert sum(group.inputs for group in groups) == inputs


def test_published_sizes_of_options() -> None:
    """Bits per weight that ExLlama's own cost function gives for layers of Llama 2 7B."""
    shape = MatrixShape(4096, 4096)
    assert stored_bits(uniform(4096, 4, 128), shape) / shape.weights == pytest.approx(4.04, abs=0.005)
    assert stored_bits(uniform(4096, 4, 32), shape) / shape.weights == pytest.approx(4.13, abs=0.005)
    head = MatrixShape(4096, 32000)
    assert stored_bits(by_shares(4096, ((8, 0.15), (6, 0.85)), {8: 128, 6: 128}), head) / head.weights == pytest.approx(
        6.34, abs=0.005
    )


def test_outputs_that_are_filled_up_and_biases_count() -> None:
    """131 outputs are stored as 160."""
    groups = uniform(64, 4, 64)
    assert stored_bits(groups, MatrixShape(64, 131)) == 64 * 160 * 4 + 16 + 32 + 4 * 160 + 32 * 64
    assert stored_bits(groups, MatrixShape(64, 131, bias=True)) - stored_bits(groups, MatrixShape(64, 131)) == 16 * 131
