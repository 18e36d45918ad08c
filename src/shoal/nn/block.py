"""A transformer block, assembled from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec
import torch
from torch import Tensor

from shoal.errors import UsageError
from shoal.kernels.tiles import RowLinear, pad_rows
from shoal.nn.layers import GatedMlp, RmsNorm
from shoal.nn.rope import RopeConfig, rotate

HEAD_ROWS = 128
"""Rows that the head computes at once, so that what has to be proven of it is bounded. A multiple of every tile."""


class BlockConfig(msgspec.Struct, frozen=True):
    """The shape of every block of a model."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope: RopeConfig
    activation: str = "silu"
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False


class ModelConfig(msgspec.Struct, frozen=True):
    """A model's shape: its blocks and its two ends."""

    model_type: str
    num_blocks: int
    vocab_size: int
    max_positions: int
    eos_token_ids: tuple[int, ...]
    tied_head: bool
    block: BlockConfig


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Stores k, v [n, kv_heads, dim] and returns the attention of q [n, heads, dim], all for one block's rows."""


class Block:
    """Pre-norm attention and gated MLP (Llama's form). Weights by role; see `families`."""

    def __init__(self, config: BlockConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        parts = [weights["q.weight"], weights["k.weight"], weights["v.weight"]]
        biases = [weights[f"{part}.bias"] for part in "qkv"] if config.attention_bias else []
        self.qkv = RowLinear(torch.cat(parts), torch.cat(biases) if biases else None)
        self.output = RowLinear(weights["o.weight"], weights.get("o.bias"))
        gate, up, down = (RowLinear(weights[f"{n}.weight"], weights.get(f"{n}.bias")) for n in ("gate", "up", "down"))
        self.mlp = GatedMlp(gate, up, down, config.activation)
        self.attention_norm = RmsNorm(weights["attention_norm.weight"], config.norm_eps)
        self.mlp_norm = RmsNorm(weights["mlp_norm.weight"], config.norm_eps)

    def __call__(self, rows: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Rows [n, hidden], n a multiple of the tile, and their angles → rows [n, hidden]."""
        config = self.config
        query, keys, values = self._heads(self.qkv(self.attention_norm(rows)))
        attended = attend(rotate(query, *angles), rotate(keys, *angles), values)
        rows = rows + self.output(attended.reshape(rows.shape[0], -1))[:, : config.hidden_size]
        return rows + self.mlp(self.mlp_norm(rows))[:, : config.hidden_size]

    def _heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config, n = self.config, projected.shape[0]
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        query, keys, values, _ = torch.split(projected, [q, kv, kv, projected.shape[1] - q - 2 * kv], dim=1)
        return (
            query.view(n, config.num_heads, config.head_dim),
            keys.view(n, config.num_kv_heads, config.head_dim),
            values.view(n, config.num_kv_heads, config.head_dim),
        )

    def linears(self) -> Iterator[RowLinear]:
        """Every matrix of the block."""
        yield from (self.qkv, self.output, self.mlp.gate_up, self.mlp.down)

    @property
    def size_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(linear.size_bytes for linear in self.linears())


class Ends:
    """What stands before the first and after the last block: embedding, final norm, head."""

    def __init__(self, embedding: Tensor, norm: RmsNorm, head: RowLinear, vocab_size: int) -> None:
        self._embedding = embedding
        self._norm = norm
        self.head = head
        self._vocab_size = vocab_size

    def embed(self, token_ids: list[int]) -> Tensor:
        """Token ids [n] → rows [n, hidden] in fp32; raises UsageError for an id outside the vocabulary."""
        for token in token_ids:
            if not 0 <= token < self._vocab_size:
                raise UsageError(f"token id {token} is not in the model's vocabulary of {self._vocab_size}")
        index = torch.tensor(token_ids, dtype=torch.long, device=self._embedding.device)
        return self._embedding[index].to(torch.float32)

    def logits(self, rows: Tensor, tile: int) -> Tensor:
        """Rows [n, hidden] → logits [n, vocab] in fp32, row-exact."""
        slabs = [self.head(self._norm(pad_rows(slab, tile))) for slab in torch.split(rows, HEAD_ROWS)]
        return torch.cat(slabs)[: rows.shape[0], : self._vocab_size]
