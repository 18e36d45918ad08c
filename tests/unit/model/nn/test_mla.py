"""Latent attention against its expanded form: keys and values of all heads made from the latent vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.model.kernels.linears import torch_linear
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.layers import RmsNorm
from shoal.model.nn.mla import HeadLinear, Latent, LatentConfig
from shoal.model.nn.rope import Rope, RopeConfig, rotate

HEADS, HIDDEN, COUNT = 3, 32, 8
ROWS = numbers(1, COUNT, HIDDEN)
ANGLES = Rope(RopeConfig(), 4).angles(torch.arange(COUNT))


def weights(config: LatentConfig) -> dict[str, Tensor]:
    """Of every role that the configuration asks for."""
    queries = HEADS * (config.plain_dim + config.rotary_dim)
    shapes: dict[str, tuple[int, ...]] = {
        "kv_a.weight": (config.rank + config.rotary_dim, HIDDEN),
        "kv_a_norm.weight": (config.rank,),
        "kv_b.weight": (HEADS * (config.plain_dim + config.value_dim), config.rank),
    }
    if config.query_rank:
        shapes |= {"q_a.weight": (config.query_rank, HIDDEN), "q_a_norm.weight": (config.query_rank,)}
        shapes["q_b.weight"] = (queries, config.query_rank)
    else:
        shapes["q.weight"] = (queries, HIDDEN)
    return {role: numbers(10 + index, *shape) for index, (role, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("query_rank", [0, 12])
def test_products_are_those_of_the_expanded_heads(query_rank: int) -> None:
    """Scores of every head between all rows, and what its values add up to."""
    config = LatentConfig(query_rank, 10, 6, 4, 7)
    given = weights(config)
    latent = Latent(config, HEADS, BlockWeights.of(given), torch_linear)
    query, key = latent.project(ROWS, ANGLES)
    assert query.shape == (COUNT, HEADS, 14)
    assert key.shape == (COUNT, 1, 14)

    rows = ROWS
    if query_rank:
        rows = RmsNorm(given["q_a_norm.weight"], config.norm_eps)(ROWS @ given["q_a.weight"].T)
    heads = (rows @ given["q_b.weight" if query_rank else "q.weight"].T).view(COUNT, HEADS, 10)
    down = ROWS @ given["kv_a.weight"].T
    vector = RmsNorm(given["kv_a_norm.weight"], config.norm_eps)(down[:, :10].contiguous())
    both = (vector @ given["kv_b.weight"].T).view(COUNT, HEADS, 13)
    turned = rotate(down[:, None, 10:], *ANGLES).expand(COUNT, HEADS, 4)
    expected = torch.einsum("nhd,thd->hnt", heads[..., :6], both[..., :6])
    expected = expected + torch.einsum("nhd,thd->hnt", rotate(heads[..., 6:], *ANGLES), turned)
    torch.testing.assert_close(torch.einsum("nhd,td->hnt", query, key[:, 0]), expected, rtol=1e-4, atol=1e-4)

    mix = numbers(5, HEADS, COUNT, COUNT)
    attended = torch.einsum("hnt,td->nhd", mix, key[:, 0])
    found = latent.expand(attended)
    torch.testing.assert_close(found, torch.einsum("hnt,thd->nhd", mix, both[..., 6:]), rtol=1e-4, atol=1e-4)


def test_a_matrix_for_each_head() -> None:
    """y_h = x_h W_h, cut to the outputs that there are."""
    heads, weight = numbers(1, 5, HEADS, 6), numbers(2, HEADS, 6, 7)
    linear = HeadLinear(weight)
    torch.testing.assert_close(linear(heads), torch.einsum("nhi,hio->nho", heads, weight))
    assert linear.size_bytes == HEADS * 6 * 64 * 4


def test_matrices_are_counted() -> None:
    """With and without a latent vector for the queries."""
    for rank, count in ((0, 4), (12, 5)):
        config = LatentConfig(rank, 10, 6, 4, 7)
        latent = Latent(config, HEADS, BlockWeights.of(weights(config)), torch_linear)
        assert len(list(latent.linears())) == count
