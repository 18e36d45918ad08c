"""A block's parts put together as its configuration says; the ends of a model."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from shoal.engine.native_proof import canned
from shoal.engine.proof import numbers
from shoal.errors import UsageError
from shoal.model.kernels.linears import RowLinear
from shoal.model.nn.block import HEAD_ROWS, Block, BlockConfig, EmbeddingAndHead, ModelConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.layers import RmsNorm
from shoal.model.nn.rope import RopeConfig

CONFIG = BlockConfig(64, 4, 2, 16, 96, 1e-5, RopeConfig())
ROWS = numbers(1, 8, 64)
STILL = (torch.ones(8, 8), torch.zeros(8, 8))
"""Angles that turn nothing."""


def values_of(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of rows that see themselves alone."""
    return values.repeat_interleave(query.shape[1] // values.shape[1], 1)


def weights(config: BlockConfig, **changed: Tensor) -> BlockWeights:
    """Canned ones, some of them changed; `__` stands for a dot."""
    drawn = canned(config)
    more = {name.replace("__", "."): tensor for name, tensor in changed.items()}
    return BlockWeights.of({**drawn.matrices, **drawn.vectors, **more})


def silent(config: BlockConfig) -> BlockWeights:
    """Weights with which neither attention nor the MLP says anything."""
    nothing = {"o__weight": torch.zeros(64, 64), "down__weight": torch.zeros(64, 96)}
    return weights(config, **nothing, o__bias=torch.zeros(64), down__bias=torch.zeros(64))


def run(block: Block) -> Tensor:
    """ROWS through a block."""
    return block(ROWS, STILL, values_of, 4)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_silent_block_passes_rows_on(parallel: bool) -> None:
    """The residual is the row itself."""
    config = msgspec.structs.replace(CONFIG, parallel_residual=parallel)
    assert torch.equal(run(Block(config, silent(config))), ROWS)


def test_side_by_side_the_mlp_does_not_see_what_attention_adds() -> None:
    """One after the other it does; with a silent attention both are the same."""
    beside = msgspec.structs.replace(CONFIG, parallel_residual=True)
    assert not torch.equal(run(Block(CONFIG, weights(CONFIG))), run(Block(beside, weights(beside))))
    quiet = {"o__weight": torch.zeros(64, 64), "o__bias": torch.zeros(64)}
    one, other = Block(CONFIG, weights(CONFIG, **quiet)), Block(beside, weights(beside, **quiet))
    assert torch.equal(run(one), run(other))


def test_norms_after_attention_and_mlp_bound_what_they_add() -> None:
    """With weights of one, each adds rows of length √hidden."""
    config = msgspec.structs.replace(CONFIG, post_norms=True)
    ones = {f"post_{part}_norm__weight": torch.ones(64) for part in ("attention", "mlp")}
    quiet = {"down__weight": torch.zeros(64, 96), "down__bias": torch.zeros(64)}
    added = run(Block(config, weights(config, **ones, **quiet))) - ROWS
    torch.testing.assert_close(added.norm(dim=1), torch.full((8,), 8.0), rtol=1e-3, atol=0)


def test_without_norms_before_rows_go_in_as_they_are() -> None:
    """No weight is asked for."""
    config = msgspec.structs.replace(CONFIG, pre_norms=False, post_norms=True)
    block = Block(config, canned(config))
    assert block.attention_norm is None
    assert block.mlp_norm is None
    assert run(block).isfinite().all()


def test_a_block_says_what_its_attention_does() -> None:
    """From its configuration and its weights."""
    config = msgspec.structs.replace(CONFIG, window=9, attn_softcap=3.0, query_scale=0.5, sinks=True, alibi=True)
    form = Block(config, canned(config)).attention_form
    assert (form.window, form.softcap, form.query_scale) == (9, 3.0, 0.5)
    assert form.sinks is not None
    assert form.slopes is not None
    assert form.slopes.shape == form.sinks.shape == (4,)


def test_sizes() -> None:
    """Every matrix once, and the cache's width in whole vectors."""
    block = Block(CONFIG, canned(CONFIG))
    assert len(list(block.linears())) == 4
    assert block.size_bytes == sum(linear.size_bytes for linear in block.linears())
    assert CONFIG.cache_shape == (2, 16, 64)
    assert (CONFIG.rotated_dim, msgspec.structs.replace(CONFIG, rotary_dim=6).rotated_dim) == (16, 6)


def test_kinds_of_blocks() -> None:
    """By number where they differ, all alike where nothing is said."""
    plain = ModelConfig("x", 2, 10, 64, (), True, CONFIG)
    assert plain.distinct_blocks == (plain.block_config(1),) == (CONFIG,)
    local = msgspec.structs.replace(CONFIG, window=5)
    mixed = msgspec.structs.replace(plain, block_kinds=(CONFIG, local), layer_types=(1, 0))
    assert [mixed.block_config(index).window for index in range(2)] == [5, 0]
    assert mixed.distinct_blocks == (CONFIG, local)


def ends(tied: bool, **fields: float) -> EmbeddingAndHead:
    """Of a model with 70 tokens, whose head is the identity's beginning."""
    config = ModelConfig("x", 1, 70, 64, (), tied, CONFIG, **fields)  # type: ignore[arg-type]
    matrix = numbers(2, 70, 64)
    return EmbeddingAndHead(config, None if tied else matrix, RmsNorm(torch.ones(64), 1e-5), RowLinear(matrix))


def test_embeddings_are_rows_of_the_matrix() -> None:
    """Tied to the head or not, scaled where the model scales; an unknown token is the caller's mistake."""
    matrix = numbers(2, 70, 64)
    for one in (ends(tied=True), ends(tied=False)):
        assert torch.equal(one.embed([69, 0, 69]), matrix[[69, 0, 69]])
        for token in (70, -1):
            with pytest.raises(UsageError, match=f"token id {token} is not"):
                one.embed([0, token])
    assert torch.equal(ends(tied=True, embedding_scale=8.0).embed([3]), matrix[[3]] * 8.0)


def test_logits_of_more_rows_than_the_head_takes_at_once() -> None:
    """Slab by slab, the same bits; as wide as the vocabulary; capped where the model caps."""
    rows = numbers(4, 2 * HEAD_ROWS + 9, 64)
    plain = ends(tied=True).logits(rows, 4)
    assert plain.shape == (2 * HEAD_ROWS + 9, 70)
    assert torch.equal(ends(tied=True).logits(rows[HEAD_ROWS : HEAD_ROWS + 4], 4), plain[HEAD_ROWS : HEAD_ROWS + 4])
    capped = ends(tied=True, final_softcap=2.0).logits(rows, 4)
    torch.testing.assert_close(capped, 2.0 * torch.tanh(plain / 2.0), rtol=1e-4, atol=1e-5)
