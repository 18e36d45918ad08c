"""Where a role's weight lies in a checkpoint, and what makes a block's weight of it: a part, or heads in another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Take = Callable[[Tensor], Tensor]


class TensorSource(NamedTuple):
    """A tensor of the checkpoint, its shape there, and what makes the role's weight of it (None: it is the weight)."""

    name: str
    shape: tuple[int, ...]
    take: Take | None = None


TensorMap = dict[str, TensorSource]
"""By role."""


def plus_one(tensor: Tensor) -> Tensor:
    """w of a norm that is stored as w - 1, in fp32."""
    return tensor.to(torch.float32) + 1.0


def rows(start: int, stop: int) -> Take:
    """A range of a fused tensor's rows."""
    return lambda tensor: tensor[start:stop]


def grouped(groups: int, start: int, stop: int, dim: int) -> Take:
    """Of rows that come as [groups, n, dim], those from `start` to `stop` of every group: q, k and v fused head by head."""

    def take(tensor: Tensor) -> Tensor:
        heads = tensor.view(groups, -1, dim, *tensor.shape[1:])
        return heads[:, start:stop].reshape(groups * (stop - start) * dim, *tensor.shape[1:])

    return take


def unpaired(head_dim: int, first: int, count: int, then: Take | None = None) -> Take:
    """Rows of heads of `head_dim`, whose dimensions from `first` on (`count` of them) turn as neighbours, as two halves."""

    def take(tensor: Tensor) -> Tensor:
        tensor = tensor if then is None else then(tensor)
        heads = tensor.reshape(-1, head_dim, *tensor.shape[1:]).clone()
        turning = heads[:, first : first + count]
        pairs = turning.reshape(heads.shape[0], count // 2, 2, *tensor.shape[1:])
        heads[:, first : first + count] = pairs.transpose(1, 2).reshape(turning.shape)
        return heads.reshape(tensor.shape)

    return take


def expert(index: int, start: int = 0, step: int = 1, transposed: bool = True) -> Take:
    """One expert of a stacked tensor, every `step`-th of its outputs; matrices lie as [in, out] where `transposed`."""

    def take(tensor: Tensor) -> Tensor:
        one = tensor[index]
        return (one.T if one.ndim == 2 and transposed else one)[start::step].contiguous()

    return take
