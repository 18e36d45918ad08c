"""What becomes of a packed matrix when its outputs are cut out or brought into another order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shoal.model.quant.packed_matrix import PackedMatrix

Change = Callable[[Tensor], Tensor]
"""Of a matrix [outputs, inputs] of floats."""


def outputs_changed(matrix: PackedMatrix, change: Change) -> PackedMatrix | None:
    """The matrix after a change that only chooses outputs or moves them; None for any other.

    What a change does is seen by the numbers of outputs and inputs that come out of it.
    """
    outputs, inputs = matrix.shape
    rows = change(torch.arange(outputs, dtype=torch.int32)[:, None].expand(outputs, inputs))
    columns = change(torch.arange(inputs, dtype=torch.int32)[None].expand(outputs, inputs))
    if rows.ndim != 2 or rows.shape != columns.shape or rows.shape[1] != inputs or rows.dtype != torch.int32:
        return None
    first = rows[:, :1]
    moved = bool((rows == first).all()) and bool((columns == torch.arange(inputs, dtype=torch.int32)).all())
    return matrix.chosen(first[:, 0].long()) if moved else None
