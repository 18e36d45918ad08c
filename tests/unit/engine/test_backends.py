"""Which backend computes a model's blocks."""

from __future__ import annotations

import msgspec
import pytest
import torch

from shoal.engine.backends import NativeBackend, TorchBackend, choose_backend, choose_linears, kernel_name
from shoal.engine.native_proof import canned
from shoal.kv.cache import KVCache
from shoal.model.kernels import cpu
from shoal.model.kernels.linears import torch_linear
from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.model.nn.rope import RopeConfig
from shoal.model.weights.block_loading import weight_format
from shoal.types import Span
from tests.kernels.natively import needs_kernels

LLAMA = BlockConfig(48, 4, 2, 12, 100, 1e-5, RopeConfig())
FLOATS = weight_format("float32")


def model(*kinds: BlockConfig) -> ModelConfig:
    """A model of these blocks."""
    return ModelConfig("llama", 3, 131, 512, (), True, kinds[0], block_kinds=kinds, layer_types=(0, 0, len(kinds) - 1))


@needs_kernels
def test_the_fastest_that_knows_the_blocks() -> None:
    """Compiled blocks; for blocks that they do not know, or ropes too many, compiled linear layers."""
    assert isinstance(choose_backend(model(LLAMA), FLOATS), NativeBackend)
    turning = [msgspec.structs.replace(LLAMA, rope=RopeConfig(theta=theta)) for theta in (1e4, 1e5, 1e6)]
    assert isinstance(choose_backend(model(*turning[:2]), FLOATS), NativeBackend)
    assert isinstance(choose_backend(model(*turning), FLOATS), TorchBackend)
    assert isinstance(choose_backend(model(LLAMA, msgspec.structs.replace(LLAMA, alibi=True)), FLOATS), TorchBackend)


@needs_kernels
def test_numerics_name_what_computes() -> None:
    """Blocks in torch around compiled layers are neither."""
    config = msgspec.structs.replace(LLAMA, parallel_residual=True)
    backend = choose_backend(model(config), FLOATS, int8_rows=True)
    before = torch.get_num_threads()
    try:
        proof = backend.prove([backend.build(config, canned(config))], model(config))
    finally:
        torch.set_num_threads(before)
    assert proof.kernel == "torch+native-int8"
    assert (kernel_name(False), kernel_name(True)) == ("native", "native-int8")


def test_what_the_kernels_cannot_read_is_plain_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16, and everything where there are no kernels."""
    assert choose_linears(weight_format("float16")) is torch_linear
    monkeypatch.setattr(cpu, "library", lambda: None)
    assert choose_linears(FLOATS) is torch_linear
    backend = choose_backend(model(LLAMA), FLOATS)
    block = backend.build(LLAMA, canned(LLAMA))
    assert len(backend.assemble(model(LLAMA), Span(1, 2), [block], KVCache(LLAMA.cache_shape, 4))) == 1
