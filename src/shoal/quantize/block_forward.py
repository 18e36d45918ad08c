"""A block over whole rows of calibration: its outputs, and what its layers' inputs are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoal.kv.pages import PAGE_TOKENS
from shoal.model.kernels.linears import Linear, torch_linear
from shoal.model.kernels.quantized import Matrix
from shoal.model.nn.attention import AttentionForm, paged_attention
from shoal.model.nn.block import Block, BlockConfig, ModelConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.rope import Rope
from shoal.model.nn.sdpa import folded
from shoal.model.weights.block_loading import load_blocks
from shoal.model.weights.checkpoint import Checkpoint
from shoal.quantize.block_layers import input_roles
from shoal.quantize.hessian import InputStatistics
from shoal.types import Span

Statistics = Mapping[str, InputStatistics]
"""By role; roles that share their inputs share the object."""


class WeightsOfBlock:
    """A block's weights in fp32, before an engine makes a block of them."""

    def __init__(self, config: BlockConfig, weights: BlockWeights) -> None:
        self.config = config
        self.weights = weights
        self.digest = ""

    @property
    def size_bytes(self) -> int:
        """Memory that they take."""
        matrices = [matrix for matrix in self.weights.matrices.values() if isinstance(matrix, Tensor)]
        return sum(tensor.nbytes for tensor in (*matrices, *self.weights.vectors.values()))

    def matrix(self, role: str) -> Tensor:
        """A layer's weight [outputs, inputs]."""
        return self.weights.floats(role)

    def block(self) -> Block:
        """The block in plain torch."""
        return Block(self.config, self.weights)

    def with_matrices(self, replaced: Mapping[str, Tensor]) -> Block:
        """The block with other weights [outputs, inputs] for some roles."""
        matrices = {**self.weights.matrices, **{f"{role}.weight": one for role, one in replaced.items()}}
        return Block(self.config, BlockWeights(matrices, self.weights.vectors))

    def observed(self) -> tuple[Block, Statistics]:
        """The block, and the statistics that it adds to when it runs."""
        block, found = Block(self.config, self.weights, ObservedLinear), dict[str, InputStatistics]()
        for roles, linear in zip(input_roles(self.config), block.linears(), strict=True):
            assert isinstance(linear, ObservedLinear)
            statistics = InputStatistics(self.matrix(roles[0]).shape[1])
            linear.watch(statistics)
            found |= dict.fromkeys(roles, statistics)
        return block, found


class ObservedLinear(Linear):
    """A linear layer in plain torch that adds its inputs to statistics, once it has been given some."""

    def __init__(self, weights: Matrix | Sequence[Matrix], bias: Tensor | None = None) -> None:
        self._inner = torch_linear(weights, bias)
        self.out_features, self.in_features = self._inner.out_features, self._inner.in_features
        self._statistics: InputStatistics | None = None

    def watch(self, statistics: InputStatistics) -> None:
        """Add to these from now on."""
        self._statistics = statistics

    def __call__(self, rows: Tensor) -> Tensor:
        if self._statistics is not None:
            self._statistics.add(rows)
        return self._inner(rows)

    def columns(self, outputs: list[int]) -> Tensor:
        return self._inner.columns(outputs)

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes


def load_weights(checkpoint: Checkpoint, config: ModelConfig, index: int) -> WeightsOfBlock:
    """One block's weights; raises CheckpointError naming the tensor that is missing or wrong."""
    return load_blocks(checkpoint, config, Span(index, index + 1), build=WeightsOfBlock)[0]


class BlockForward:
    """Runs blocks over rows of tokens that begin at position 0; angles of all kinds of blocks are kept."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._angles: dict[tuple[object, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, block: Block, states: Tensor) -> Tensor:
        """States [rows, length, hidden] in fp32 → the same shape."""
        rows, length, hidden = states.shape
        cos, sin = self._angles_of(block.config)
        flat = states.reshape(rows * length, hidden)
        attend = _Attend(block.attention_form, length)
        return block(flat, (cos.repeat(rows, 1), sin.repeat(rows, 1)), attend, 1).view(rows, length, hidden)

    def _angles_of(self, config: BlockConfig) -> tuple[Tensor, Tensor]:
        turning = config.rope, config.rotated_dim
        if turning not in self._angles:
            self._angles[turning] = Rope(*turning).angles(torch.arange(self._length), self._length)
        return self._angles[turning]


class _Attend:
    """Causal attention of rows one after the other."""

    def __init__(self, form: AttentionForm, length: int) -> None:
        self._form = form
        self._length = length
        self._plain = not form.window and not form.softcap and form.sinks is None and form.slopes is None

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        attend = folded if self._plain else _over_pages
        cut = zip(*(torch.split(one, self._length) for one in (query, keys, values)), strict=True)
        return torch.cat([attend(q, k.transpose(0, 1), v.transpose(0, 1), self._form) for q, k, v in cut])


def _over_pages(query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm) -> Tensor:
    """query [n, heads, dim], keys and values [kv_heads, n, dim] → [n, heads, dim], for every form of attention."""
    return paged_attention(query, _pages(keys), _pages(values), torch.arange(query.shape[0]), 1, form)


def _pages(heads: Tensor) -> Tensor:
    """[kv_heads, n, dim] → [pages, kv_heads, PAGE_TOKENS, dim]."""
    kv_heads, n, dim = heads.shape
    filled = torch.nn.functional.pad(heads, (0, 0, 0, -n % PAGE_TOKENS))
    return filled.view(kv_heads, -1, PAGE_TOKENS, dim).transpose(0, 1)
