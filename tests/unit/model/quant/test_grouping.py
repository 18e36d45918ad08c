"""Inputs whose groups lie in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.errors import CheckpointError
from shoal.model.quant.grouping import Codes, group_size, in_groups

CODES = Codes(torch.arange(12, dtype=torch.uint8).repeat(2, 1), 4)
SCALES = torch.tensor([[1.0, 10.0], [2.0, 20.0]])


def test_groups_of_different_sizes_are_sections() -> None:
    """The weights are those of each input's own group; the stored order is that of groups."""
    places = np.array([1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1], np.int32)
    matrix = in_groups("key", CODES, SCALES, None, places)
    assert [(section.inputs, section.group) for section in matrix.sections] == [(3, 3), (9, 9)]
    expected = torch.arange(12.0) * SCALES[:, torch.from_numpy(places).long()]
    assert torch.equal(matrix.dequantized(), expected)


def test_a_last_group_may_be_smaller() -> None:
    """Of five, five and two inputs in one section."""
    matrix = in_groups("key", CODES, torch.ones(2, 3), None, None, 5)
    assert [(section.inputs, section.group) for section in matrix.sections] == [(12, 5)]
    assert matrix.order is None


@pytest.mark.parametrize(("groups", "size"), [(5, None), (0, None), (2, 5), (4, 6)])
def test_groups_that_do_not_share_the_inputs(groups: int, size: int | None) -> None:
    """Named."""
    with pytest.raises(CheckpointError, match=f"key has {groups} groups"):
        in_groups("key", CODES, torch.ones(2, groups), None, None, size)


@pytest.mark.parametrize(
    ("said", "size"), [(128, 128), (-1, None), (0, None), (None, None), ("32", None), (True, None)]
)
def test_what_a_configuration_says(said: object, size: int | None) -> None:
    """−1: all inputs share a scale."""
    assert group_size({"group_size": said}) == size
