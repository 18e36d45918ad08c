"""The start-up proof finds what holds, and says so when nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import TILES, ExecutionEnv, numbers, probe, prove, prove_ends
from shoal.model.kernels.linears import RowLinear
from shoal.model.nn.attention import AttentionForm, paged_attention
from shoal.model.nn.block import Attend, Block, BlockConfig, EmbeddingAndHead, ModelConfig
from shoal.model.nn.layers import RmsNorm
from shoal.model.nn.moe import Experts, MoeConfig
from shoal.model.nn.rope import RopeConfig
from shoal.model.nn.sdpa import DeviceAttention
from tests.support.tiny_models import random_blocks

CONFIG = BlockConfig(40, 4, 2, 10, 100, 1e-5, RopeConfig())
MODEL = ModelConfig("llama", 1, 131, 512, (), True, CONFIG)
MIXED = BlockConfig(
    40, 4, 2, 10, 100, 1e-5, RopeConfig(), norm="layer", window=70, attn_softcap=5.0, moe=MoeConfig(5, 2, 30)
)
NUMBERS = [[780294.0, -429150.0], [-167568.0, -198407.0]]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Fake:
    """A block that adds something to its rows."""

    config = CONFIG
    attention_form = AttentionForm()

    def __init__(self, least_tile: int = 1, leaks_threads: bool = False, leaks_company: bool = False) -> None:
        self._least_tile = least_tile
        self._leaks_threads = leaks_threads
        self._leaks_company = leaks_company

    def __call__(self, rows: Tensor, angles: tuple[Tensor, Tensor], attend: Attend, tile: int) -> Tensor:
        """Rows [n, hidden] → rows [n, hidden]."""
        if rows.shape[0] % self._least_tile:
            return rows + rows.shape[0]
        return rows + self._leaks_threads * torch.get_num_threads() + self._leaks_company * rows.sum()


def fake(least_tile: int = 1, leaks_threads: bool = False, leaks_company: bool = False) -> Block:
    """The fake where a block is asked for."""
    return cast(Block, Fake(least_tile, leaks_threads, leaks_company))


def test_a_real_block_is_proven() -> None:
    """On this machine, with the threads there are or with one, the proof ends well."""
    proof = prove(random_blocks(CONFIG, 1), MODEL)
    assert proof.exact
    assert (proof.kernel, proof.threads) == ("torch", torch.get_num_threads())
    assert len(bytes.fromhex(proof.probe)) == 16


def test_every_kind_of_block_is_proven() -> None:
    """One that leaks fails the proof, wherever it stands; of blocks of one kind, one is enough."""
    good, leaking = random_blocks(CONFIG, 1)[0], fake(leaks_company=True)
    leaking.config = BlockConfig(40, 4, 2, 10, 100, 1e-5, RopeConfig(), window=70)
    assert not prove([good, leaking], MODEL).exact
    leaking.config = CONFIG
    assert prove([leaking, good], MODEL).exact


def test_a_mixture_is_proven_with_its_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that an expert with many rows keeps them exact, which rows through the router alone would not try."""
    block = random_blocks(MIXED, 1, model_type="qwen3_moe")[0]
    model = ModelConfig("qwen3_moe", 1, 131, 512, (), True, MIXED)
    assert prove([block], model).exact
    assert isinstance(block.mlp, Experts)
    first = block.mlp.experts[0]

    def leaking(rows: Tensor) -> Tensor:
        return first(rows) + (rows.shape[0] > 300) * rows.sum()

    monkeypatch.setattr(block.mlp, "experts", [leaking, *block.mlp.experts[1:]])
    assert not prove([block], model).exact


def test_the_head_is_proven_too() -> None:
    """The client's end has a proof of its own."""
    head = RowLinear(numbers(1, 131, 40))
    ends = EmbeddingAndHead(MODEL, head.weight, RmsNorm(numbers(2, 40), 1e-5), head)
    assert prove_ends(ends, CONFIG).exact


def test_the_smallest_tile_that_holds_is_taken() -> None:
    """Arithmetic that is exact in sixteens gets a tile of sixteen, with all threads."""
    proof = prove([fake(least_tile=16)], MODEL)
    assert (proof.exact, proof.tile, proof.threads) == (True, 16, 2)


def test_one_thread_is_the_second_choice() -> None:
    """Arithmetic that depends on the number of threads gets one thread, which is then set."""
    proof = prove([fake(leaks_threads=True)], MODEL)
    assert (proof.exact, proof.tile, proof.threads) == (True, TILES[0], 1)
    assert torch.get_num_threads() == 1


def test_what_does_not_hold_is_announced() -> None:
    """Arithmetic in which rows feel each other is inexact, whatever the tile."""
    proof = prove([fake(leaks_company=True)], MODEL)
    assert (proof.exact, proof.threads) == (False, 1)
    assert torch.get_num_threads() == 1


def test_the_numbers_are_the_same_everywhere() -> None:
    """Known values: the generator's raw output is specified, whatever the version of numpy."""
    assert (numbers(7, 2, 2) * 2**20).tolist() == NUMBERS
    assert torch.equal(numbers(7, 6)[:4].view(2, 2), numbers(7, 2, 2))
    assert numbers(8, 10_000).abs().max() <= 1.0


def test_the_probe_tells_arithmetic_apart() -> None:
    """The same for every tile and thread count that is exact; another for another shape or rope."""
    known = probe((CONFIG,), 4)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert {probe((CONFIG,), tile) for tile in (4, 8, 16)} == {known}
    turned = BlockConfig(40, 4, 2, 10, 100, 1e-5, RopeConfig(theta=500_000.0))
    assert probe((turned,), 4) != known


def test_the_probe_sees_the_last_bit() -> None:
    """One unit in the last place of attention changes it."""
    known = probe((CONFIG,), 4)

    def nudged(query: Tensor, *rest: Any, **options: Any) -> Tensor:
        result = paged_attention(query, *rest, **options)
        result[0, 0, 0] = torch.nextafter(result[0, 0, 0], torch.tensor(9.0))
        return result

    assert probe((CONFIG,), 4, ExecutionEnv(attention=nudged)) != known
    assert probe((CONFIG,), 4, ExecutionEnv(attention=paged_attention)) == known


def test_the_attention_that_is_used_is_proven() -> None:
    """One in which rows feel each other fails, whatever the matrices do."""

    def leaking(query: Tensor, *rest: Any, **options: Any) -> Tensor:
        return paged_attention(query, *rest, **options) + query.shape[0]

    block = random_blocks(CONFIG, 1)
    assert not prove(block, MODEL, ExecutionEnv(attention=leaking)).exact
    assert prove(block, MODEL, ExecutionEnv(kv_dtype=torch.bfloat16)).exact


def test_kernels_that_may_not_be_exact_are_not_believed() -> None:
    """Here a device's attention is made of the exact one, so that every comparison holds."""

    class Lucky(DeviceAttention):
        def __call__(self, query: Tensor, *rest: Any, **options: Any) -> Tensor:
            return paged_attention(query, *rest, **options)

    capped = BlockConfig(40, 4, 2, 10, 100, 1e-5, RopeConfig(), attn_softcap=5.0)
    assert not prove(random_blocks(CONFIG, 1), MODEL, ExecutionEnv(attention=Lucky())).exact
    assert prove(random_blocks(capped, 1), MODEL, ExecutionEnv(attention=Lucky())).exact
