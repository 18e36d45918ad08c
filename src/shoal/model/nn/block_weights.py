"""The weights that a block is made of, by role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.model.kernels.linears import Linear, MakeLinear
from shoal.model.kernels.quantized import Matrix, filled_up, weights_of


class BlockWeights(NamedTuple):
    """`matrices` [out, in] as floats or codes; `vectors` (norms, biases, sinks, …) in fp32. Roles are those of `families`."""

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[str, Matrix]) -> BlockWeights:
        """Matrices and vectors told apart by their dimensions."""
        vectors = {role: one for role, one in tensors.items() if isinstance(one, Tensor) and one.ndim < 2}
        return cls({role: one for role, one in tensors.items() if role not in vectors}, vectors)

    def matrix(self, role: str) -> Matrix:
        """The weight of a linear layer."""
        return self.matrices[f"{role}.weight"]

    def floats(self, role: str) -> Tensor:
        """The weight of a layer that is never quantized."""
        return weights_of(self.matrix(role))

    def bias(self, role: str) -> Tensor | None:
        """The bias of a linear layer, if it has one."""
        return self.vectors.get(f"{role}.bias")

    def norm(self, role: str) -> Tensor:
        """The weight of a norm."""
        return self.vectors[f"{role}.weight"]

    def linear(self, role: str, make: MakeLinear, in_features: int = 0) -> Linear:
        """A linear layer; its inputs are padded to `in_features`."""
        return make(filled_up(self.matrix(role), in_features=in_features), self.bias(role))

    def joined(self, roles: tuple[str, ...], make: MakeLinear, each: int = 0) -> Linear:
        """Several linear layers of the same rows as one, with at least `each` outputs each."""
        weights = [filled_up(self.matrix(role), out_features=each) for role in roles]
        biases = [torch.nn.functional.pad(bias, (0, max(0, each - bias.shape[0]))) for bias in self._biases(roles)]
        return make(weights, torch.cat(biases) if biases else None)

    def _biases(self, roles: tuple[str, ...]) -> list[Tensor]:
        return [bias for role in roles if (bias := self.bias(role)) is not None]
