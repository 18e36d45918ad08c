"""Matrices whose inputs have groups in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.model.quant.packed_matrix import Levels, PackedMatrix, Section
from shoal.model.quant.stored_tensors import Array


def group_size(config: Mapping[str, Any]) -> int | None:
    """What a configuration says of inputs that share a scale; None: nothing, or (−1) that all do."""
    size = config.get("group_size")
    return size if type(size) is int and size > 0 else None


class Codes(NamedTuple):
    """Codes [outputs, inputs] in uint8 of some bits, from which `zero` is taken off."""

    codes: Tensor
    bits: int
    zero: int = 0


def in_groups(
    key: str, given: Codes, scales: Tensor, zeros: Tensor | None, places: Array | None, group: int | None = None
) -> PackedMatrix:
    """A matrix whose inputs are in the groups that `places` [inputs] names, in any order; None: in order, `group` of them
    or (None) all as large.

    `scales` and `zeros` are [outputs, groups]. Raises CheckpointError for groups that are not there or have no inputs.
    """
    codes, inputs, groups = given.codes, given.codes.shape[1], scales.shape[1]
    if places is None:
        places = np.arange(inputs) // _size(key, inputs, groups, group)
    elif len(places) != inputs or places.min() < 0 or places.max() >= groups:
        raise CheckpointError(f"{key} does not name a group from 0 to {groups - 1} for each of {inputs} inputs")
    sizes = np.bincount(places, minlength=groups)
    if not sizes.all():
        raise CheckpointError(f"{key} has groups without inputs")
    ordered = bool((np.diff(places) >= 0).all())
    order = None if ordered else torch.from_numpy(np.argsort(places, kind="stable"))
    sections = _sections(given, sizes.tolist(), scales, zeros)
    return PackedMatrix(codes if order is None else codes[:, order], sections, order, scales.dtype)


def _size(key: str, inputs: int, groups: int, group: int | None) -> int:
    size = inputs // max(1, groups) if group is None else group
    if not groups or -(-inputs // max(1, size)) != groups or (group is None and inputs % groups):
        raise CheckpointError(f"{key} has {groups} groups, which do not share {inputs} inputs")
    return size


def _sections(given: Codes, sizes: list[int], scales: Tensor, zeros: Tensor | None) -> tuple[Section, ...]:
    """Groups of one size in one section; the last may be smaller."""
    sections, at = [], 0
    while at < len(sizes):
        size, end, inputs = sizes[at], at, 0
        while end < len(sizes) and (sizes[end] == size or (end == len(sizes) - 1 and sizes[end] < size)):
            inputs, end = inputs + sizes[end], end + 1
        some = None if zeros is None else zeros[:, at:end]
        sections.append(Section(inputs, given.bits, size, Levels(scales[:, at:end]), given.zero, some))
        at = end
    return tuple(sections)
