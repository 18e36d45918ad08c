"""What is certified of a family is what people run: the compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from shoal.engine import native
from shoal.engine.backends import NativeBackend, choose_backend
from shoal.engine.proof import numbers
from shoal.errors import ShoalError
from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.model.weights.block_loading import weight_format
from shoal.types import Span
from tests.kernels.natively import needs_kernels
from tests.support.certify import PROPERTIES, load
from tests.support.family_cases import CASES, save_checkpoint
from tests.support.tiny_models import SMOLLM2
from tests.swarms import NUM_BLOCKS, SwarmMaker

SLOW = ("greedy", "splits", "gguf", "8 bits", "4 bits")
"""Columns of the table that are computed in plain torch and take long."""


class NewerConfig(BlockConfig, frozen=True):
    """The form of a family's blocks that has come after the compiled kernels."""

    residual_multiplier: float = 1.0


NEWER = NewerConfig(**msgspec.structs.asdict(SMOLLM2), residual_multiplier=0.22)


def other_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the compiled kernels compute something else than the block says: row-exact, and wrong."""
    monkeypatch.setitem(native.ACTIVATIONS, "silu", native.ACTIVATIONS["gelu_pytorch_tanh"])


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """The table is for one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@needs_kernels
def test_a_field_that_the_kernels_do_not_know_is_not_supported() -> None:
    """A block whose form has a field that the compiled kernels never heard of is not for them."""
    assert native.supports(SMOLLM2)
    assert not native.supports(NEWER)


@needs_kernels
@pytest.mark.parametrize("kinds", [(), (SMOLLM2, NEWER)], ids=["all blocks", "some blocks"])
def test_blocks_of_a_form_that_is_not_supported_go_elsewhere(kinds: tuple[BlockConfig, ...]) -> None:
    """A model with blocks of a form that the compiled kernels do not know is computed without them."""
    model = ModelConfig("llama", 2, 258, 512, (), True, NEWER, block_kinds=kinds, layer_types=tuple(range(len(kinds))))
    assert not isinstance(choose_backend(model, weight_format("float32")), NativeBackend)


@needs_kernels
@pytest.mark.usefixtures("_one_thread")
def test_certification_sees_the_compiled_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose blocks the compiled kernels compute wrongly fails a column of the table."""
    case = next(case for case in CASES if case.model_type == "llama" and not case.name)
    loaded = load(save_checkpoint(case, tmp_path), case.granted)
    other_activation(monkeypatch)
    measured = {one.name: (one.measure(loaded, case), one.limit) for one in PROPERTIES if one.name not in SLOW}
    assert any(value is not None and value > limit for value, limit in measured.values()), measured


@needs_kernels
async def test_a_server_whose_kernels_are_wrong_serves_nothing_wrong(
    swarm_of: SwarmMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose compiled kernels compute something else than plain torch does not start, or goes without them."""

    async def outputs() -> Tensor:
        async with swarm_of(Span(0, NUM_BLOCKS)) as swarm, swarm.client() as client:
            async with client.session(await client.find_model(), max_tokens=32) as session:
                return await session.step(numbers(1, 20, 48))

    expected = await outputs()
    other_activation(monkeypatch)
    try:
        found = await outputs()
    except ShoalError:
        return
    assert (found - expected).norm() < 1e-4 * expected.norm()
