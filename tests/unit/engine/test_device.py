"""Everything that computes rows, on each device that there is; the processor runs the same code everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from shoal.engine.device import check_device, device_backend, device_memory, device_memory_bytes
from shoal.engine.proof import numbers
from shoal.engine.runner import Runner
from shoal.errors import CapacityError, UsageError
from shoal.kv.cache import KVCache
from shoal.kv.cache_storage import KV_DTYPES, read_dtype
from shoal.kv.prefix import PrefixCache
from shoal.model.nn.block import Block, BlockConfig, ModelConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.moe import MoeConfig
from shoal.model.nn.rope import RopeConfig, cache_positions
from shoal.model.quant.packed_matrix import PackedMatrix
from shoal.model.weights.block_loading import WeightFormat, _digest
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.support.tiny_models import random_parameters, torch_runner

SPAN = Span(2, 4)
PLAIN = BlockConfig(40, 4, 2, 10, 100, 1e-5, RopeConfig())
CONFIGS = {
    "llama": PLAIN,
    "gemma3_text": BlockConfig(
        33, 3, 1, 10, 90, 1e-5, RopeConfig(), post_norms=True, qk_norm="head", window=20, attn_softcap=3.0
    ),
    "qwen3_moe": BlockConfig(33, 3, 1, 10, 90, 1e-5, RopeConfig(), qk_norm="head", moe=MoeConfig(6, 2, 33)),
}
CHUNKS = (1, 70, 1, 1, 60)
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2, "int8": 2e-2, "int4": 0.1}
"""With integers, a key that lies just between two codes may fall to either side."""


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def moved(weights: BlockWeights, form: WeightFormat, device: str) -> BlockWeights:
    """Weights as they are loaded."""
    return BlockWeights.of(
        {role: form.apply(role, one, device) for role, one in (weights.matrices | weights.vectors).items()}  # type: ignore[operator, arg-type]
    )


def apart(found: Tensor, truth: Tensor) -> float:
    """How far numbers are from what they should be, as a share of those."""
    return float((found - truth).norm() / truth.norm())


def through(runner: Runner, session: str, rows: Tensor) -> Tensor:
    """Rows in chunks; their outputs come back from the device."""
    runner.open(session, SPAN, rows.shape[0], "somebody")
    outputs, done = [], 0
    for count in CHUNKS:
        outputs.append(runner.step([Rows(session, done, rows[done : done + count])])[0])
        done += count
    return torch.cat(outputs)


def on_device(
    device: str, config: BlockConfig, model_type: str, form: WeightFormat, kv_dtype: str, exact: bool = False
) -> tuple[Runner, bool]:
    """A runner as a server makes it, and what its proof says."""
    backend = device_backend(device, form.dtype, read_dtype(kv_dtype), exact)
    model = ModelConfig(model_type, 4, 131, 512, (), True, config)
    weights = random_parameters(config, 2, scale=0.2, model_type=model_type)
    blocks = [backend.build(config, moved(each, form, device)) for each in weights]
    proof = backend.prove(blocks, model)
    assert proof.kernel.startswith(f"torch-{device}")
    cache = KVCache(config.cache_shape, 24, kv_dtype, device, max_shared=4)
    prefixes = PrefixCache(cache.pages, config.hidden_size, cache_positions((config.rope,)), device=device)
    return Runner(SPAN, backend.assemble(model, SPAN, blocks, cache), cache, prefixes), proof.exact


def expected(config: BlockConfig, model_type: str, form: WeightFormat, kv_dtype: str, rows: Tensor) -> Tensor:
    """The same in exact arithmetic on the processor."""
    weights = random_parameters(config, 2, scale=0.2, model_type=model_type)
    blocks = [Block(config, moved(each, form, "cpu")) for each in weights]
    return through(torch_runner(config, SPAN, blocks, KVCache(config.cache_shape, 24, kv_dtype), 4), "truth", rows)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_device_computes_what_the_processor_does(device: str, model_type: str, kv_dtype: str) -> None:
    """Within rounding, with every cache, for attention of each way; a prefix that is found is what was computed."""
    config = CONFIGS[model_type]
    rows = numbers(3, sum(CHUNKS), config.hidden_size)
    runner, _ = on_device(device, config, model_type, WeightFormat(), kv_dtype)
    found = through(runner, "first", rows)
    truth = expected(config, model_type, WeightFormat(), kv_dtype, rows)
    assert apart(found, truth) < TOLERANCE[kv_dtype]
    assert apart(through(runner, "second", rows), truth) < TOLERANCE[kv_dtype]


def test_prefixes_are_found_on_a_device(device: str) -> None:
    """Two pages of a prompt in one go: output rows that lie on the device, and rows after them that are computed."""
    runner, _ = on_device(device, PLAIN, "llama", WeightFormat(), "float16")
    rows = numbers(4, 140, PLAIN.hidden_size)
    outputs = []
    for session in ("first", "second"):
        runner.open(session, SPAN, 150, "somebody")
        outputs.append(runner.step([Rows(session, 0, rows)])[0])
    assert runner.found_rows == 128
    assert torch.equal(outputs[0][:128], outputs[1][:128])
    torch.testing.assert_close(outputs[0], outputs[1], atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "form", [WeightFormat(torch.bfloat16), WeightFormat(torch.float16), WeightFormat(torch.bfloat16, 4)]
)
def test_weights_in_fewer_bits(device: str, form: WeightFormat) -> None:
    """Products in the weights' own dtype, and codes that become such weights, stay near."""
    rows = numbers(3, sum(CHUNKS), PLAIN.hidden_size)
    runner, _ = on_device(device, PLAIN, "llama", form, "bfloat16")
    found, truth = through(runner, "first", rows), expected(PLAIN, "llama", form, "bfloat16", rows)
    assert apart(found, truth) < 0.05


def test_flash_kernels_are_announced_as_inexact(device: str) -> None:
    """And exact arithmetic is had for the asking where the proof finds it: always on this processor."""
    assert not on_device(device, PLAIN, "llama", WeightFormat(), "float32")[1]
    exact = on_device(device, PLAIN, "llama", WeightFormat(), "float32", exact=True)[1]
    assert exact or device != "cpu"


def test_codes_do_not_depend_on_the_device(device: str) -> None:
    """Servers compare digests of their blocks."""
    weights = random_parameters(PLAIN, 1)[0]
    here, there = (moved(weights, WeightFormat(bits=4), each) for each in ("cpu", device))
    matrix = there.matrix("q")
    assert isinstance(matrix, PackedMatrix)
    assert matrix.codes.device.type == device
    assert _digest(here) == _digest(there)


def test_fp64_weights_reach_a_device(device: str) -> None:
    """Which may have no fp64 itself."""
    for role, form in (
        ("q.weight", WeightFormat(bits=8)),
        ("q.weight", WeightFormat()),
        ("router.weight", WeightFormat()),
    ):
        form.apply(role, numbers(1, 64, 64).to(torch.float64), device)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "", "meta", "cuda:x", "cpu:0"])
def test_a_name_that_is_no_device_is_a_mistake(name: str) -> None:
    """Whoever wrote it is told what there is."""
    with pytest.raises(UsageError, match="cpu, cuda, mps"):
        check_device(name)


def test_a_device_that_is_not_here_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all, or not so many."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(CapacityError, match="no devices"):
            check_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_device("cuda:0")
    with pytest.raises(CapacityError, match="torch finds 1 device of"):
        check_device("cuda:1")


def test_the_memory_is_the_devices_own(device: str) -> None:
    """Only a CUDA device has memory of its own."""
    assert (device_memory_bytes(device) is None) == (device != "cuda")


def test_too_little_memory_is_a_lack_of_capacity() -> None:
    """Whatever is wrong besides stays what it is."""
    with pytest.raises(CapacityError, match="fewer blocks"), device_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="else"), device_memory():
        raise RuntimeError("something else")
