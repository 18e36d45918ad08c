"""A transformer block, assembled from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import torch
from torch import Tensor

from shoal.errors import UsageError
from shoal.kv.cache_storage import CacheShape
from shoal.model.kernels.linears import Linear, MakeLinear, torch_linear
from shoal.model.kernels.tiles import pad_rows, padded, softcap_
from shoal.model.nn.alibi import alibi_slopes
from shoal.model.nn.attention import AttentionForm
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.layers import GatedMlp, LayerNorm, Mlp, Norm, PlainMlp, RmsNorm
from shoal.model.nn.mla import HeadLinear, Latent, LatentConfig
from shoal.model.nn.moe import Experts, MoeConfig
from shoal.model.nn.rope import RopeConfig, rotate

HEAD_ROWS = 128
"""Rows that the head computes at once, so that what has to be proven of it is bounded. A multiple of every tile."""


class BlockConfig(msgspec.Struct, frozen=True):
    """What one block computes. What is left at its default is Llama's; whether a matrix has a bias its weights say."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    """Key heads as they are cached; with `latent` 1."""

    head_dim: int
    """Width of a cached key; with `latent` that of the latent vector and the rotary part."""

    intermediate_size: int
    norm_eps: float
    rope: RopeConfig
    activation: str = "silu"
    norm: str = "rms"
    """"rms" or "layer" (with a bias)."""

    pre_norms: bool = True
    post_norms: bool = False
    """Norms before attention and MLP, and norms after each before the residual."""

    parallel_residual: bool = False
    """x + attention(norm(x)) + mlp(norm'(x)) instead of one after the other."""

    qk_norm: str = ""
    """RMS norms of q and k before they turn: "head" for each head, "full" over all heads together."""

    query_scale: float | None = None
    """What q · k is multiplied by; None: 1 / √head_dim."""

    rotary_dim: int | None = None
    """Leading dimensions of a head that turn; None: all, 0: none."""

    window: int = 0
    """Keys that a row sees, its own included; 0: all."""

    attn_softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    gated_mlp: bool = True
    mlp_limit: float = 0.0
    """gpt-oss' bound on gate and up; see `GatedMlp`."""

    moe: MoeConfig | None = None
    latent: LatentConfig | None = None

    @property
    def cache_shape(self) -> CacheShape:
        """What the KV cache keeps of a token; heads are widened to whole vectors."""
        return CacheShape(self.num_kv_heads, self.head_dim, padded(self.head_dim))

    @property
    def rotated_dim(self) -> int:
        """Dimensions of a head that turn."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim


class StoredTensors(msgspec.Struct, frozen=True):
    """Which tensors the blocks of a checkpoint have, where models of one family differ."""

    attention_bias: bool = False
    """Of q, k and v; `output_bias`: of o."""

    output_bias: bool = False
    mlp_bias: bool = False
    shared_norm: bool = False
    """Whether the norms before attention and MLP are one tensor."""


class ModelConfig(msgspec.Struct, frozen=True):
    """A model's shape: its blocks and its two ends."""

    model_type: str
    num_blocks: int
    vocab_size: int
    max_positions: int
    eos_token_ids: tuple[int, ...]
    tied_head: bool
    block: BlockConfig
    """What all blocks share: widths, key heads, norms. Of what differs, this is the first block's."""

    block_kinds: tuple[BlockConfig, ...] = ()
    layer_types: tuple[int, ...] = ()
    """Where blocks differ: the kinds there are, and each block's index among them."""

    embedding_scale: float = 1.0
    embedding_norm: bool = False
    final_softcap: float = 0.0
    stored: StoredTensors = StoredTensors()

    @property
    def distinct_blocks(self) -> tuple[BlockConfig, ...]:
        """Every kind of block that the model has."""
        return self.block_kinds or (self.block,)

    def block_config(self, index: int) -> BlockConfig:
        """The form of block `index`."""
        return self.block_kinds[self.layer_types[index]] if self.layer_types else self.block


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Stores k, v [n, kv_heads, dim] and returns the attention of q [n, heads, dim], all for one block's rows."""


class Block:
    """Attention and MLP as the configuration says. Weights by role; see `families`."""

    def __init__(self, config: BlockConfig, weights: BlockWeights, make: MakeLinear = torch_linear) -> None:
        self.config = config
        self.digest = ""
        self.latent = None if config.latent is None else Latent(config.latent, config.num_heads, weights, make)
        self.qkv = None if config.latent is not None else weights.joined(("q", "k", "v"), make)
        self.query_norm, self.key_norm = (_qk_norm(config, weights, role) for role in ("query_norm", "key_norm"))
        self.sinks = weights.vectors["sinks"].to(torch.float32) if config.sinks else None
        self.output = weights.linear("o", make)
        self.mlp = _mlp(config, weights, make)
        self.attention_norm = _norm(config, weights, "attention_norm") if config.pre_norms else None
        self.mlp_norm = _norm(config, weights, "mlp_norm") if config.pre_norms else None
        self.post_attention_norm = _norm(config, weights, "post_attention_norm") if config.post_norms else None
        self.post_mlp_norm = _norm(config, weights, "post_mlp_norm") if config.post_norms else None
        device = next(iter(weights.vectors.values())).device
        self.slopes = alibi_slopes(config.num_heads).to(device) if config.alibi else None

    @property
    def attention_form(self) -> AttentionForm:
        """What its attention does beside the plain thing."""
        config = self.config
        return AttentionForm(config.query_scale, config.window, config.attn_softcap, self.sinks, self.slopes)

    def __call__(
        self, rows: Tensor, angles: tuple[Tensor, Tensor], attend: Attend, tile: int, count: int | None = None
    ) -> Tensor:
        """Rows [n, hidden], n a multiple of the tile and `count` of them real, and their angles → rows [n, hidden]."""
        count = rows.shape[0] if count is None else count
        attended = self._attention(_normed(self.attention_norm, rows), angles, attend)
        if self.config.parallel_residual:
            return rows + (attended + self._feed_forward(rows, tile, count))
        rows = rows + attended
        return rows + self._feed_forward(rows, tile, count)

    def _attention(self, normed: Tensor, angles: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        if self.latent is not None:
            query, key = self.latent.project(normed, angles)
            attended = self.latent.expand(attend(query, key, key))
        else:
            query, keys, values = self._heads(normed)
            attended = attend(rotate(query, *angles), rotate(keys, *angles), values)
        output = self.output(attended.reshape(normed.shape[0], -1))[:, : self.config.hidden_size]
        return _normed(self.post_attention_norm, output)

    def _feed_forward(self, rows: Tensor, tile: int, count: int) -> Tensor:
        output = self.mlp(_normed(self.mlp_norm, rows), tile, count)[:, : self.config.hidden_size]
        return _normed(self.post_mlp_norm, output)

    def _heads(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query [n, heads, dim], keys and values [n, kv_heads, dim], normed where the configuration says so."""
        assert self.qkv is not None
        config, n = self.config, normed.shape[0]
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        query, keys, values = torch.split(self.qkv(normed)[:, : q + 2 * kv], [q, kv, kv], dim=1)
        if config.qk_norm == "full":
            query, keys = _normed(self.query_norm, query), _normed(self.key_norm, keys)
        query = query.reshape(n, config.num_heads, config.head_dim)
        keys = keys.reshape(n, config.num_kv_heads, config.head_dim)
        if config.qk_norm == "head":
            query, keys = _normed(self.query_norm, query), _normed(self.key_norm, keys)
        return query, keys, values.reshape(n, config.num_kv_heads, config.head_dim)

    def linears(self) -> Iterator[Linear | HeadLinear]:
        """Every matrix of the block."""
        if self.qkv is not None:
            yield self.qkv
        if self.latent is not None:
            yield from self.latent.linears()
        yield self.output
        yield from self.mlp.linears()

    @property
    def size_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(linear.size_bytes for linear in self.linears())


def _normed(norm: Norm | None, rows: Tensor) -> Tensor:
    return rows if norm is None else norm(rows.contiguous())


def _norm(config: BlockConfig, weights: BlockWeights, role: str) -> Norm:
    weight = weights.norm(role)
    if config.norm == "layer":
        return LayerNorm(weight, weights.bias(role), config.norm_eps)
    return RmsNorm(weight, config.norm_eps)


def _qk_norm(config: BlockConfig, weights: BlockWeights, role: str) -> Norm | None:
    if not config.qk_norm:
        return None
    return RmsNorm(weights.norm(role), config.norm_eps)


def _mlp(config: BlockConfig, weights: BlockWeights, make: MakeLinear) -> Mlp:
    if config.moe is None:
        if not config.gated_mlp:
            up = weights.linear("up", make)
            return PlainMlp(up, weights.linear("down", make, padded(up.out_features)), config.activation)
        return _gated(config, weights, "", make)
    experts = [_gated(config, weights, f"experts.{index}.", make) for index in range(config.moe.num_experts)]
    shared = _gated(config, weights, "shared.", make) if config.moe.shared_size else None
    correction = weights.vectors["router.correction"].to(torch.float32) if config.moe.correction else None
    return Experts(config.moe, weights.linear("router", make), experts, shared, correction)


def _gated(config: BlockConfig, weights: BlockWeights, prefix: str, make: MakeLinear) -> GatedMlp:
    inner = padded(weights.matrix(f"{prefix}gate").shape[0])
    gate_up = weights.joined((f"{prefix}gate", f"{prefix}up"), make, inner)
    return GatedMlp(gate_up, weights.linear(f"{prefix}down", make, inner), config.activation, config.mlp_limit)


class EmbeddingAndHead:
    """What stands before the first and after the last block: embedding (None: the head is tied to it), final norm, head."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor | None,
        norm: Norm,
        head: Linear,
        embedding_norm: Norm | None = None,
    ) -> None:
        self._config = config
        self._embedding = embedding
        self._embedding_norm = embedding_norm
        self._norm = norm
        self.head = head

    def embed(self, token_ids: list[int]) -> Tensor:
        """Token ids [n] → rows [n, hidden] in fp32; raises UsageError for an id outside the vocabulary."""
        for token in token_ids:
            if not 0 <= token < self._config.vocab_size:
                raise UsageError(f"token id {token} is not in the model's vocabulary of {self._config.vocab_size}")
        if self._embedding is None:
            rows = self.head.columns(token_ids)
        else:
            index = torch.tensor(token_ids, dtype=torch.long, device=self._embedding.device)
            rows = self._embedding[index].to(torch.float32)
        if self._config.embedding_scale != 1.0:
            rows = rows * self._config.embedding_scale
        return _normed(self._embedding_norm, rows)

    def logits(self, rows: Tensor, tile: int) -> Tensor:
        """Rows [n, hidden] → logits [n, vocab] in fp32, row-exact."""
        slabs = [self._slab(pad_rows(slab, tile)) for slab in torch.split(rows, HEAD_ROWS)]
        # One slab is not copied: a row's logits are several times what its hidden state is.
        whole = slabs[0] if len(slabs) == 1 else torch.cat(slabs)
        return whole[: rows.shape[0], : self._config.vocab_size]

    def _slab(self, rows: Tensor) -> Tensor:
        logits = self.head(self._norm(rows))
        return softcap_(logits, self._config.final_softcap) if self._config.final_softcap else logits


def final_norm(config: BlockConfig, weights: BlockWeights, role: str = "norm") -> Norm:
    """The norm of a model's end, of the same kind as its blocks'."""
    return _norm(config, weights, role)
