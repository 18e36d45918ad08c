"""A row's bits depend on its own session alone: not on company, chunks, pages or threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.engine.runner import Runner
from shoal.kv.cache import KVCache
from shoal.kv.cache_storage import KV_DTYPES
from shoal.model.nn.block import Block, BlockConfig, StoredTensors
from shoal.model.nn.mla import LatentConfig
from shoal.model.nn.moe import MoeConfig
from shoal.model.nn.rope import RopeConfig
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.support.tiny_models import SMOLLM2, fill_with_garbage, random_blocks, shared_tile, torch_runner

THREADS = (1, 2, 3, 5)
MOST_ROWS = 150
SPAN = Span(4, 6)
ROPE = RopeConfig()
BIASED = StoredTensors(attention_bias=True, output_bias=True, mlp_bias=True)
LATENT = LatentConfig(query_rank=18, rank=20, plain_dim=10, rotary_dim=6, value_dim=14)
GROUPED = MoeConfig(8, 3, 33, "sigmoid", True, 1.5, correction=True, num_groups=4, groups_per_token=2, shared_size=50)
CONFIGS: dict[str, tuple[str, BlockConfig] | tuple[str, BlockConfig, StoredTensors]] = {
    "biases": ("llama", BlockConfig(33, 3, 1, 10, 90, 1e-5, ROPE), BIASED),
    "llama 3": ("llama", BlockConfig(90, 4, 2, 22, 1537, 1e-5, RopeConfig(kind="llama3", factor=8.0))),
    "gelu": ("llama", BlockConfig(100, 2, 2, 50, 33, 1e-5, ROPE, activation="gelu_pytorch_tanh")),
    "SmolLM2": ("llama", SMOLLM2),
    "four norms, window, caps": (
        "gemma3_text",
        BlockConfig(33, 3, 1, 10, 90, 1e-5, ROPE, post_norms=True, qk_norm="head", window=20, attn_softcap=3.0),
    ),
    "norms after": (
        "olmo2",
        BlockConfig(33, 3, 1, 10, 90, 1e-5, ROPE, pre_norms=False, post_norms=True, qk_norm="full"),
    ),
    "ALiBi, LayerNorm": (
        "bloom",
        BlockConfig(36, 3, 3, 12, 90, 1e-5, ROPE, "gelu", norm="layer", rotary_dim=0, alibi=True, gated_mlp=False),
    ),
    "side by side": (
        "falcon",
        BlockConfig(
            36,
            3,
            1,
            12,
            90,
            1e-5,
            ROPE,
            "gelu",
            norm="layer",
            parallel_residual=True,
            gated_mlp=False,
        ),
        StoredTensors(shared_norm=True),
    ),
    "a part turns": ("glm4", BlockConfig(33, 3, 1, 10, 90, 1e-5, ROPE, post_norms=True, rotary_dim=6)),
    "by length": (
        "llama",
        BlockConfig(33, 3, 1, 10, 90, 1e-5, RopeConfig(kind="dynamic", factor=2.0, original_max_positions=32)),
    ),
    "experts": ("qwen3_moe", BlockConfig(33, 3, 1, 10, 90, 1e-5, ROPE, qk_norm="head", moe=MoeConfig(6, 2, 33))),
    "experts, sinks": (
        "gpt_oss",
        BlockConfig(
            33,
            3,
            1,
            10,
            90,
            1e-5,
            ROPE,
            "quick_gelu",
            sinks=True,
            window=20,
            mlp_limit=1.0,
            moe=MoeConfig(6, 3, 33, "softmax_of_chosen"),
        ),
        BIASED,
    ),
    "latent, grouped experts": (
        "deepseek_v3",
        BlockConfig(33, 3, 1, 26, 90, 1e-5, ROPE, query_scale=0.25, rotary_dim=6, latent=LATENT, moe=GROUPED),
    ),
}


class Model(NamedTuple):
    """Two blocks and the tile that keeps them exact."""

    config: BlockConfig
    blocks: list[Block]
    tile: int


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def model(request: pytest.FixtureRequest) -> Model:
    """A model of each shape, where this machine can keep it exact."""
    model_type, config, *stored = CONFIGS[request.param]
    scale = 0.3 if config.hidden_size < 500 else 0.05
    blocks = random_blocks(config, 2, 0, scale, model_type, *stored)
    tile = shared_tile(blocks[0], THREADS)
    if tile is None:
        pytest.skip("this machine's BLAS is not row-exact with several threads")
    return Model(config, blocks, tile)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Plan(NamedTuple):
    """Sessions' lengths and spans, the order in which chunks of them are computed, and what the cache went through before."""

    sessions: list[tuple[int, Span]]
    steps: list[dict[int, int]]
    """Rows for each session in a step; those left over at the end go in the last ones."""
    pauses: list[int | None]
    """Where, in turn, rows of these steps pause, to go on the next time that their session has some."""

    earlier: list[tuple[int, bool]]
    threads: int
    dtype: str


spans = st.sampled_from([SPAN, SPAN, Span(4, 5), Span(5, 6)])
plans = st.builds(
    Plan,
    st.lists(st.tuples(st.integers(1, MOST_ROWS), spans), min_size=1, max_size=4),
    st.lists(st.dictionaries(st.integers(0, 3), st.sampled_from([1, 1, 2, 3, 7, 50, 64, 130])), max_size=6),
    st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 3 * 64), st.booleans()), max_size=5),
    st.sampled_from(THREADS),
    st.sampled_from(KV_DTYPES),
)


def in_frames(rows: Rows) -> list[Rows]:
    """The same rows as entries that follow one another."""
    middle = rows.position + rows.num_rows // 3
    return [rows] if middle == rows.position else [rows.ending_at(middle), rows.starting_at(middle)]


def session_rows(index: int, count: int, width: int) -> Tensor:
    """A session's input rows."""
    return 2 * numbers(100 + index, count, width)


def expected_rows(model: Model, plan: Plan) -> list[Tensor]:
    """Every session alone, in one go, with one thread, in a cache of its own."""
    torch.set_num_threads(1)
    outputs = []
    for index, (count, span) in enumerate(plan.sessions):
        runner = torch_runner(
            model.config, SPAN, model.blocks, KVCache(model.config.cache_shape, 6, plan.dtype), model.tile
        )
        runner.open("alone", span, count)
        rows = session_rows(index, count, model.config.hidden_size)
        outputs.append(runner.step([Rows("alone", 0, rows)])[0])
    return outputs


def worn_runner(model: Model, plan: Plan) -> Runner:
    """A runner whose cache other sessions have used and left in pieces, full of garbage."""
    cache = KVCache(model.config.cache_shape, 64, plan.dtype)
    fill_with_garbage(cache)
    runner = torch_runner(model.config, SPAN, model.blocks, cache, model.tile)
    for index, (count, _) in enumerate(plan.earlier):
        runner.open(f"earlier {index}", SPAN, count)
        cache.grow(f"earlier {index}", count)
    for index, (_, stays) in enumerate(plan.earlier):
        if not stays:
            runner.close(f"earlier {index}")
    return runner


@settings(max_examples=15, deadline=None)
@given(plan=plans)
def test_a_rows_bits_are_its_sessions_own(model: Model, plan: Plan) -> None:
    """Any batches, chunks, pauses between blocks, pages, threads and sub-spans give what each session gives alone."""
    expected = expected_rows(model, plan)
    torch.set_num_threads(plan.threads)
    runner, width = worn_runner(model, plan), model.config.hidden_size
    inputs = [session_rows(index, count, width) for index, (count, _) in enumerate(plan.sessions)]
    for index, (count, span) in enumerate(plan.sessions):
        runner.open(str(index), span, count)
    done, under_way, pauses = [0] * len(inputs), dict[int, Rows](), itertools.cycle(plan.pauses)
    everything = dict.fromkeys(range(len(inputs)), MOST_ROWS)
    for step in (*plan.steps, everything, everything):
        batch = []
        for index, count in step.items():
            if index < len(inputs) and done[index] < inputs[index].shape[0]:
                here = slice(done[index], done[index] + count)
                batch.append(under_way.pop(index, None) or Rows(str(index), here.start, inputs[index][here]))
        stops = (
            {} if step is everything else {rows.session: stop for rows in batch if (stop := next(pauses)) is not None}
        )
        frames = [part for rows in batch for part in in_frames(rows)]
        outputs = runner.step(frames, stops)
        for rows, output in zip(frames, outputs, strict=True):
            index = int(rows.session)
            if output.shape[0]:
                assert torch.equal(output, expected[index][rows.position : rows.stop])
                done[index] = rows.stop
        under_way = {int(rows.session): rows for rows in batch if done[int(rows.session)] < rows.stop} | under_way
    assert done == [count for count, _ in plan.sessions]


@settings(max_examples=10, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 140), min_size=1, max_size=6),
    threads=st.sampled_from(THREADS),
    dtype=st.sampled_from(KV_DTYPES),
)
def test_what_was_truncated_leaves_no_trace(model: Model, cuts: list[int], threads: int, dtype: str) -> None:
    """After rewinds to anywhere, other rows in between, the same rows give the same bits."""
    width, count = model.config.hidden_size, 140
    rows = session_rows(7, count, width)
    runner = torch_runner(model.config, SPAN, model.blocks, KVCache(model.config.cache_shape, 8, dtype), model.tile)
    runner.open("one", SPAN, 200)
    torch.set_num_threads(1)
    expected = runner.step([Rows("one", 0, rows)])[0]
    torch.set_num_threads(threads)
    for cut in cuts:
        runner.truncate("one", cut)
        runner.step([Rows("one", cut, session_rows(8, 60, width))])
        runner.truncate("one", cut)
        again = runner.step([Rows("one", cut, rows[cut:])])[0] if cut < count else expected[:0]
        assert torch.equal(again, expected[cut:])
