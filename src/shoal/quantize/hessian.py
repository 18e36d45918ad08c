"""What calibration says about a linear layer's inputs, and the factor of its inverse that error feedback needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from shoal.errors import CheckpointError

DAMPING = 0.01
"""Of the mean of the diagonal, added to it."""

MAX_TRIES = 12
"""Each multiplies the damping by `GROWTH`."""

GROWTH = 4.0


class InputStatistics:
    """The sum of xᵀx over rows x of one linear layer's inputs, and how many there were."""

    def __init__(self, inputs: int) -> None:
        self.products = torch.zeros(inputs, inputs)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        """Rows [n, inputs] in fp32, or wider ones of which the rest is filled up."""
        some = rows[:, : self.products.shape[0]]
        self.products.addmm_(some.T, some)
        self.rows += rows.shape[0]


class InverseFactor(NamedTuple):
    """`order` [inputs]: the model's input of each stored one, by falling diagonal. `upper` [inputs, inputs]: U with
    (H + damping)⁻¹ = UᵀU in stored order."""

    order: Tensor
    upper: Tensor

    @property
    def weights(self) -> Tensor:
        """How much a squared error of each stored input counts when the inputs after it make up for it, [inputs]."""
        return self.upper.diagonal().square().reciprocal()


def factored(hessian: Tensor, damping: float = DAMPING) -> InverseFactor:
    """The factor of a Hessian [inputs, inputs]; raises CheckpointError where it is not finite."""
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise CheckpointError("calibration gives rows that are not finite: the checkpoint's weights are damaged")
    order = torch.sort(diagonal, descending=True, stable=True).indices
    ordered = hessian[order][:, order]
    added = max(damping * float(diagonal.mean()), 1e-8)
    for _ in range(MAX_TRIES):
        damped = ordered.clone()
        damped.diagonal().add_(added)
        upper, failed = _upper(damped)
        if not failed:
            return InverseFactor(order, upper)
        added *= GROWTH
    raise CheckpointError("calibration gives inputs whose products have no inverse")


def without_feedback(hessian: Tensor, damping: float = DAMPING) -> InverseFactor:
    """A factor under which each weight is rounded to nearest: inputs in order of activation, none makes up for another."""
    diagonal = hessian.diagonal()
    order = torch.sort(diagonal, descending=True, stable=True).indices
    counted = diagonal[order] + max(damping * float(diagonal.mean()), 1e-8)
    return InverseFactor(order, torch.diag(counted.rsqrt()))


def to_nearest(squares: Tensor) -> InverseFactor:
    """A factor under which each weight is rounded to nearest and all inputs count alike; inputs by their falling squares."""
    order = torch.sort(squares, descending=True, stable=True).indices
    counted = max(float(squares.mean()), 1e-8)
    return InverseFactor(order, torch.eye(len(squares)) * counted**-0.5)


def _upper(damped: Tensor) -> tuple[Tensor, bool]:
    lower, info = torch.linalg.cholesky_ex(damped)
    if int(info):
        return lower, True
    upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return upper, bool(int(info)) or not bool(torch.isfinite(upper).all())
