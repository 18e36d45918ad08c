"""Multi-head latent attention (DeepSeek V2, arXiv:2405.04434) in one form for prefill and decode.

Keys and values of all heads come from one latent vector per token, which alone is cached: the matrices that would expand it
are applied to the queries before attention and to the result after it. A second, expanded form for prefill would be faster
there and have other bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import torch
from torch import Tensor

from shoal.model.kernels.linears import Linear, MakeLinear
from shoal.model.kernels.tiles import padded
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.layers import RmsNorm
from shoal.model.nn.rope import rotate

Angles = tuple[Tensor, Tensor]


class LatentConfig(msgspec.Struct, frozen=True):
    """Widths of the latent vectors and of the heads' parts. `query_rank` 0: queries have no latent vector."""

    query_rank: int
    rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int
    norm_eps: float = 1e-6


class HeadLinear:
    """y_h = x_h W_h for every head h: x [n, heads, in], W [heads, in, out] → y [n, heads, out], row-exact like RowLinear."""

    def __init__(self, weight: Tensor) -> None:
        self._out = weight.shape[2]
        self.weight = torch.nn.functional.pad(weight, (0, padded(self._out) - self._out)).contiguous()

    def __call__(self, heads: Tensor) -> Tensor:
        product = torch.bmm(heads.transpose(0, 1).contiguous(), self.weight.to(torch.float32))
        return product.transpose(0, 1)[..., : self._out]

    @property
    def size_bytes(self) -> int:
        """Memory that the weight takes."""
        return self.weight.nbytes


class Latent:
    """Queries, and the one key head that is the latent vector beside the rotary part. Weights by role; see `deepseek`."""

    def __init__(self, config: LatentConfig, num_heads: int, weights: BlockWeights, make: MakeLinear) -> None:
        self.config = config
        self._heads = num_heads
        if config.query_rank:
            self.query_down: Linear | None = weights.linear("q_a", make)
            self.query_norm = RmsNorm(weights.norm("q_a_norm"), config.norm_eps)
            self.query = weights.linear("q_b", make)
        else:
            self.query_down = None
            self.query = weights.linear("q", make)
        self.down = weights.linear("kv_a", make)
        self.norm = RmsNorm(weights.norm("kv_a_norm"), config.norm_eps)
        # Taken apart by head and direction, it stays in floats.
        both = weights.floats("kv_b").view(num_heads, config.plain_dim + config.value_dim, config.rank)
        self.keys = HeadLinear(both[:, : config.plain_dim])
        self.values = HeadLinear(both[:, config.plain_dim :].transpose(1, 2))

    def project(self, rows: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """Rows [n, hidden] → query [n, heads, rank + rotary], key [n, 1, rank + rotary]; the key is the value as well."""
        config, n = self.config, rows.shape[0]
        if self.query_down is not None:
            rows_q = self.query(self.query_norm(self.query_down(rows)[:, : config.query_rank].contiguous()))
        else:
            rows_q = self.query(rows)
        dim = config.plain_dim + config.rotary_dim
        heads = rows_q[:, : self._heads * dim].reshape(n, self._heads, dim)
        query = torch.cat(
            [self.keys(heads[..., : config.plain_dim]), rotate(heads[..., config.plain_dim :], *angles)], -1
        )
        down = self.down(rows)
        latent = self.norm(down[:, : config.rank].contiguous())[:, None]
        turned = rotate(down[:, None, config.rank : config.rank + config.rotary_dim], *angles)
        return query, torch.cat([latent, turned], -1)

    def expand(self, attended: Tensor) -> Tensor:
        """What attention made of the values [n, heads, rank + rotary] → [n, heads, value_dim]."""
        return self.values(attended[..., : self.config.rank])

    def linears(self) -> Iterator[Linear | HeadLinear]:
        """Its matrices."""
        if self.query_down is not None:
            yield self.query_down
        yield from (self.query, self.down, self.keys, self.values)
