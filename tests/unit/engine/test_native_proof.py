"""The proof of the compiled kernels: rows are exact, and they are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import pytest
import torch

from shoal.engine import native
from shoal.engine.native import NativeBlock, NativeBlocks
from shoal.engine.native_proof import canned, prove_native
from shoal.errors import UsageError
from shoal.model.kernels import cpu
from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.model.nn.rope import RopeConfig
from shoal.protocol.rows import Rows
from tests.kernels.natively import needs_kernels

CONFIG = BlockConfig(48, 4, 2, 12, 100, 1e-5, RopeConfig(), window=30, attn_softcap=5.0, query_scale=0.3)


@pytest.fixture
def context() -> Iterator[cpu.Context]:
    """One thread."""
    opened = cpu.Context(1)
    yield opened
    opened.close()


def model(config: BlockConfig) -> ModelConfig:
    """One block of this form."""
    return ModelConfig("llama", 1, 131, 512, (), True, config)


@needs_kernels
def test_kernels_hold(context: cpu.Context) -> None:
    """The probe is the same each time, and another one for blocks that compute something else."""
    blocks = [NativeBlock(CONFIG, canned(CONFIG))]
    exact, probe = prove_native(blocks, model(CONFIG), context)
    assert exact
    assert prove_native(blocks, model(CONFIG), context) == (True, probe)
    assert prove_native([], model(msgspec.structs.replace(CONFIG, window=20)), context)[1] != probe


@needs_kernels
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("attn_softcap", 0.0), ("query_scale", 0.6), ("window", 0), ("rotary_dim", 6), ("activation", 1)],
)
def test_kernels_that_take_a_number_for_another_are_refused(
    context: cpu.Context, monkeypatch: pytest.MonkeyPatch, name: str, wrong: float
) -> None:
    """They compute something else, though each row exactly."""
    monkeypatch.setitem(native.RESOLVED, name, lambda config: wrong)
    with pytest.raises(UsageError, match="something else than plain torch"):
        prove_native([], model(CONFIG), context)


def test_canned_weights_are_the_same_everywhere() -> None:
    """And everything that a block may have: biases, norms, sinks."""
    config = msgspec.structs.replace(CONFIG, post_norms=True, qk_norm="head", sinks=True)
    one, other = canned(config), canned(config)
    assert all(torch.equal(one.vectors[role], other.vectors[role]) for role in one.vectors)
    assert {"q.bias", "down.bias", "post_mlp_norm.weight", "key_norm.weight", "sinks"} < one.vectors.keys()
    assert not [role for role in canned(config, biases=False).vectors if role.endswith("bias")]
    assert not torch.equal(canned(config, 1).floats("q"), one.floats("q"))


@needs_kernels
def test_kernels_whose_rows_depend_on_company_are_found_out(
    context: cpu.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rounding that only a tall batch has is enough."""
    run = NativeBlocks.run

    def wrong(self: NativeBlocks, blocks: range, batch: Sequence[Rows]) -> list[torch.Tensor]:
        outputs = run(self, blocks, batch)
        return [torch.nextafter(one, one + 1) for one in outputs] if len(outputs[0]) > 100 else outputs

    monkeypatch.setattr(NativeBlocks, "run", wrong)
    assert not prove_native([NativeBlock(CONFIG, canned(CONFIG))], model(CONFIG), context)[0]
