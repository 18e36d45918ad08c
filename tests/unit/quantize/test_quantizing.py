"""Rounding a model by a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoal.model.quant import exl2
from shoal.quantize.bit_plan import BitPlan
from shoal.quantize.quantizing import Quantizing
from shoal.quantize.row_groups import uniform
from shoal.quantize.source_model import SourceModel
from tests.support.quantized_models import small_llama
from tests.unit.quantize.test_measuring import some_tokens


def flat_plan(model: SourceModel, bits: int) -> BitPlan:
    """All groups of one width."""
    groups = {layer.key: uniform(layer.shape.inputs, bits, 32) for layer in model.quantizable}
    return BitPlan(groups, bits, 0.0, 0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    """A random Llama."""
    torch.set_num_threads(1)
    return SourceModel.open(str(small_llama(tmp_path_factory.mktemp("model"))))


def run(model: SourceModel, folder: Path, bits: int) -> Quantizing:
    """With so many bits everywhere."""
    folder.mkdir()
    quantizing = Quantizing(model, some_tokens(), folder, lambda *_: None)
    quantizing.run(flat_plan(model, bits), 8, "rounding")
    return quantizing


def test_files_hold_the_layers_near_their_weights(model: SourceModel, tmp_path: Path) -> None:
    """Of each block and of the head; the more bits, the nearer."""
    errors = []
    for bits in (3, 8):
        quantizing = run(model, tmp_path / str(bits), bits)
        tensors = load_file(quantizing.block_file(1))
        for layer in model.layers[1]:
            read = torch.from_numpy(exl2.dequantize(tensors, layer.key, layer.shape.outputs)).float().T
            weight = model.weights(1).matrix(layer.role)
            assert float((read - weight).norm() / weight.norm()) < (0.4 if bits == 3 else 0.02)
        errors.append(sum(layer.relative_error for layer in quantizing.layers()))
        assert len(quantizing.layers()) == len(model.quantizable)
    head = torch.from_numpy(exl2.dequantize(load_file(quantizing.head_file), "lm_head", 258)).float().T
    assert float((head - model.head_weight()).norm() / head.norm()) < 0.02
    assert errors[1] < errors[0] / 100


def test_without_head_bits_the_head_is_left_alone(model: SourceModel, tmp_path: Path) -> None:
    """For those who compare blocks."""
    quantizing = Quantizing(model, some_tokens(), tmp_path, lambda *_: None)
    quantizing.run(flat_plan(model, 4), None, "rounding")
    assert not quantizing.head_file.exists()
