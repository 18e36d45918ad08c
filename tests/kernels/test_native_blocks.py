"""Blocks on the compiled kernels: against plain torch, and row-exact."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine.backends import NativeBackend, choose_backend
from shoal.engine.native import supports
from shoal.engine.native_proof import canned
from shoal.engine.proof import numbers
from shoal.kv.cache_storage import KV_DTYPES
from shoal.model.kernels import cpu
from shoal.model.kernels.quantized import quantize
from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.rope import RopeConfig
from shoal.model.weights.block_loading import weight_format
from shoal.protocol.rows import Rows
from tests.kernels.natively import (
    ROWS,
    SPAN,
    contexts,
    in_company,
    in_one_go,
    instruction_sets,
    native_runner,
    needs_kernels,
    parameters,
    torch_runner,
)
from tests.support.tiny_models import SMOLLM2

pytestmark = needs_kernels

PLAIN = RopeConfig()
FORMS = {
    "biases": BlockConfig(40, 4, 2, 10, 90, 1e-5, PLAIN),
    "gelu, one key head": BlockConfig(
        90, 4, 1, 22, 137, 1e-5, RopeConfig(kind="llama3", factor=8.0), activation="gelu_pytorch_tanh"
    ),
    "gemma": BlockConfig(
        *(48, 4, 2, 16, 100, 1e-6, PLAIN, "gelu_pytorch_tanh"),
        post_norms=True,
        qk_norm="head",
        query_scale=0.3,
        window=40,
        attn_softcap=5.0,
    ),
    "sinks, part of a head turns": BlockConfig(64, 8, 2, 72, 64, 1e-5, PLAIN, sinks=True, window=64, rotary_dim=24),
    "norms after only": BlockConfig(64, 2, 2, 32, 64, 1e-5, PLAIN, pre_norms=False, post_norms=True),
    "SmolLM2": SMOLLM2,
}
CUTS = (1, 2, 5, 30, 7, 1, 20)


def quantized(weights: list[BlockWeights], bits: int) -> list[BlockWeights]:
    """The same blocks with their matrices as codes."""
    return [
        BlockWeights({role: quantize(one, bits) for role, one in each.matrices.items()}, each.vectors)  # type: ignore[arg-type]
        for each in weights
    ]


@pytest.mark.parametrize("name", FORMS)
def test_a_block_computes_what_torch_computes(name: str) -> None:
    """The same bits in pieces and in company, on every instruction set and thread count; to rounding what torch says."""
    config = FORMS[name]
    assert supports(config)
    weights, rows = parameters(config, biases=name == "biases"), numbers(5, ROWS, config.hidden_size)
    expected, bits = in_one_go(torch_runner(config, weights), rows), None
    for context in contexts():
        runner = native_runner(config, weights, context)
        whole = in_one_go(runner, rows)
        bits = whole if bits is None else bits
        assert torch.equal(whole, bits)
        assert torch.equal(in_company(runner, rows, CUTS), bits)
    assert bits is not None
    assert (bits - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_every_cache_is_read_and_written_as_torch_does(kv_dtype: str) -> None:
    """The cache's numbers are torch's but where rounding tips a code over, and rows stay exact."""
    config = FORMS["biases"]
    weights, rows = parameters(config, biases=True), numbers(5, ROWS, config.hidden_size)
    truth, bits = torch_runner(config, weights, kv_dtype), None
    expected = in_one_go(truth, rows)
    for context in contexts():
        runner = native_runner(config, weights, context, kv_dtype)
        whole = in_one_go(runner, rows)
        bits = whole if bits is None else bits
        assert torch.equal(whole, bits)
        for mine, true in zip(runner.cache.read("whole", 3), truth.cache.read("whole", 3), strict=True):
            close = torch.isclose(mine, true, rtol=1e-3, atol=1e-3)
            assert close.float().mean() > 0.999
        assert torch.equal(in_company(runner, rows, CUTS), bits)
    assert bits is not None
    assert (bits - expected).norm() < 0.01 * expected.norm()


def test_tokens_that_share_a_byte_of_the_cache_are_written_one_after_the_other() -> None:
    """Two threads never change one byte: a prompt's rows come out the same every time."""
    config = FORMS["biases"]
    runner = native_runner(config, parameters(config, biases=True), cpu.Context(2), "int4")
    rows = numbers(5, ROWS, config.hidden_size)
    first = in_one_go(runner, rows)
    for _ in range(200):
        runner.close("whole")
        assert torch.equal(in_one_go(runner, rows), first)


@pytest.mark.parametrize("int8_rows", [False, True])
@pytest.mark.parametrize("bits_per_code", [8, 4])
def test_quantized_blocks_are_exact_too(bits_per_code: int, int8_rows: bool) -> None:
    """Codes give what their dequantized weights give; with 8-bit rows a row's scales are its own."""
    config = FORMS["biases"]
    weights, rows = quantized(parameters(config), bits_per_code), numbers(5, ROWS, config.hidden_size)
    expected, bits = in_one_go(torch_runner(config, weights), rows), None
    for context in contexts():
        runner = native_runner(config, weights, context, int8_rows=int8_rows)
        whole = in_one_go(runner, rows)
        bits = whole if bits is None else bits
        assert torch.equal(whole, bits)
        assert torch.equal(in_company(runner, rows, CUTS), bits)
    assert bits is not None
    assert (bits - expected).norm() < (0.05 if int8_rows else 1e-5) * expected.norm()


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.sampled_from([1, 1, 2, 3, 4, 6, 7, 16, 17, 31, 64]), max_size=8),
    kv_dtype=st.sampled_from(KV_DTYPES),
    threads=st.sampled_from([1, 2, 3]),
    name=st.sampled_from([name for name in FORMS if name != "SmolLM2"]),
)
def test_rows_are_exact_however_they_are_cut(cuts: list[int], kv_dtype: str, threads: int, name: str) -> None:
    """Any cut, any cache, any form of block."""
    config = FORMS[name]
    kept: list[int] = []
    for cut in cuts:
        if sum(kept) + cut < ROWS:
            kept.append(cut)
    weights, rows = parameters(config), numbers(6, ROWS, config.hidden_size)
    context = cpu.Context(threads)
    runner = native_runner(config, weights, context, kv_dtype)
    assert torch.equal(in_company(runner, rows, kept), in_one_go(runner, rows))
    context.close()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("role", ["k.bias", "v.bias"])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_keys_and_values_that_are_not_finite_are_refused(kv_dtype: str, role: str, place: int) -> None:
    """Wherever in a head it stands, NaN stays visible in every cache; it had become 0 in codes."""
    config = FORMS["biases"]
    weights = parameters(config, biases=True)
    weights[0].vectors[role] = weights[0].vectors[role].index_fill(0, torch.tensor(place % 20), float("nan"))
    for limit in instruction_sets():
        runner = native_runner(config, weights, cpu.Context(1, limit), kv_dtype)
        runner.open("bad", SPAN, 10)
        with pytest.raises(ValueError, match="not finite"):
            runner.step([Rows("bad", 0, numbers(5, 10, config.hidden_size))])


def test_rows_that_are_not_finite_are_refused() -> None:
    """Whatever spoils them, the step says so and the cache is as before."""
    config = FORMS["biases"]
    for limit in instruction_sets():
        runner = native_runner(config, parameters(config, biases=True), cpu.Context(1, limit))
        rows = numbers(5, 10, config.hidden_size)
        rows[3, 7] = float("nan")
        runner.open("bad", SPAN, 10)
        with pytest.raises(ValueError, match="not finite"):
            runner.step([Rows("bad", 0, rows)])
        assert runner.cache.pages["bad"].num_tokens == 0


def test_contexts_do_not_disturb_each_other() -> None:
    """Several contexts of more threads than cores, several threads at once, over and over: nothing hangs, no bit differs."""
    config = FORMS["biases"]
    weights, rows = parameters(config, biases=True), numbers(5, 40, config.hidden_size)
    expected = in_one_go(native_runner(config, weights, cpu.Context(1)), rows)
    wrong: list[str] = []

    def work() -> None:
        context = cpu.Context(3)
        runner = native_runner(config, weights, context)
        runner.open("again", SPAN, 40)
        for _ in range(60):
            runner.truncate("again", 0)
            if not torch.equal(runner.step([Rows("again", 0, rows)])[0], expected):
                wrong.append("differs")
        context.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_torch_keeps_one_thread_beside_the_kernels() -> None:
    """Its others wait for work by spinning, on the cores that the kernels' threads need: two threads were as slow as one."""
    config, before = FORMS["biases"], torch.get_num_threads()
    context = cpu.Context(2)
    backend = NativeBackend(context)
    try:
        torch.set_num_threads(2)
        proof = backend.prove(
            [backend.build(config, canned(config))], ModelConfig("llama", 1, 131, 512, (), True, config)
        )
        assert proof.exact
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
        context.close()


def test_a_second_span_gets_as_many_threads_as_the_first() -> None:
    """A server that moves loads again, when the first proof has left torch one thread."""
    config, before = FORMS["biases"], torch.get_num_threads()
    model = ModelConfig("llama", 1, 131, 512, (), True, config)
    try:
        threads = []
        for _ in range(2):
            backend = choose_backend(model, weight_format("float32"))
            threads.append(backend.prove([backend.build(config, canned(config))], model).threads)
        assert threads[0] == threads[1]
    finally:
        torch.set_num_threads(before)
