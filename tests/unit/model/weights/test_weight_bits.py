"""What is said of weights: as many bits as they take, scales included, and a quality that is known or not told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.model.families import family, model_config
from shoal.model.quant.packed_matrix import PackedMatrix
from shoal.model.weights.block_loading import WeightFormat
from shoal.model.weights.model_source import open_checkpoint
from shoal.model.weights.quantization_note import QuantizationNote
from shoal.model.weights.weight_bits import known_kl, num_weights, span_bits
from shoal.types import Span
from tests.foreign.cases import FILES
from tests.unit.model.weights.checkpoints import MemoryCheckpoint
from tests.unit.model.weights.test_block_loading import FEATURES, Memory, config_of

QUANTIZED = Path(__file__).parents[3] / "foreign" / "quantized"
FULL, HALF, EIGHT, FOUR = WeightFormat(), WeightFormat(torch.bfloat16), WeightFormat(bits=8), WeightFormat(bits=4)
FORMS = {"fp32": FULL, "bf16": HALF, "8 bits": EIGHT, "4 bits": FOUR, "4 beside bf16": WeightFormat(torch.bfloat16, 4)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("model_type", ["llama", *FEATURES])
def test_bits_are_those_of_what_is_made(model_type: str, form: WeightFormat) -> None:
    """Of every family and form: codes, scales of short groups, and what stays in floats, counted one by one."""
    checkpoint = Memory(model_type=model_type, **FEATURES.get(model_type, {}))
    config, bits, count = config_of(checkpoint), 0, 0
    for role, stored in family(model_type).block_tensors(config, 1).items():
        tensor = checkpoint.held[stored.name]
        made = form.apply(role, tensor if stored.take is None else stored.take(tensor), "cpu")
        if isinstance(made, PackedMatrix):
            (section,) = made.sections
            assert section.scales.steps is not None
            bits += section.bits * made.codes.numel() + 4 * section.scales.steps.numel()  # all outputs share units
        elif made.ndim >= 2:
            bits += 8 * made.nbytes
        count += made.shape[0] * made.shape[1] if len(made.shape) >= 2 else 0
    assert span_bits(checkpoint, config, Span(1, 2), form) == pytest.approx(bits / count)
    assert num_weights(config, Span(1, 2)) == count


def test_floats_of_a_files_codes_count_with_the_codes() -> None:
    """Whoever reads 4-bit codes into fp32 has no better weights for it; fewer bits than the file's are fewer."""
    for method, bits in (("awq", 4.625), ("gptq", 5.125), ("compressed-tensors", 4.53)):
        checkpoint = open_checkpoint(str(QUANTIZED / method))
        config = model_config(checkpoint.config)
        assert span_bits(checkpoint, config, Span(0, 1), FULL) == pytest.approx(bits, abs=0.01)
        assert 4.06 < span_bits(checkpoint, config, Span(0, 1), FOUR) < bits
    gguf = open_checkpoint(str(FILES / "k-quants.gguf"))
    kinds = {info.dtype: info.bits for info in gguf.tensors.values()}
    known = {"F32": 0.0, "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_0": 8.5}
    assert kinds.items() <= known.items()
    assert span_bits(gguf, model_config(gguf.config), Span(0, 1), FULL) == pytest.approx(3.98, abs=0.01)


def test_quality_is_known_of_floats_that_are_kept() -> None:
    """What is rounded, here or in the file, is not measured."""
    tensors = {"a": torch.zeros(2, 2), "norm": torch.zeros(2)}
    narrow = {"a": torch.zeros(2, 2, dtype=torch.bfloat16), "norm": torch.zeros(2)}
    assert known_kl(MemoryCheckpoint(tensors), FULL) == 0.0
    assert known_kl(MemoryCheckpoint(narrow), FULL) == 0.0
    assert known_kl(MemoryCheckpoint(narrow), HALF) == 0.0
    for form in (HALF, WeightFormat(torch.float16), EIGHT, FOUR):
        assert known_kl(MemoryCheckpoint(tensors), form) is None
    for form, kl in ((FULL, 0.03), (FOUR, None), (HALF, None)):
        measured = MemoryCheckpoint(tensors)
        measured.note = QuantizationNote("ab" * 16, 0.03)
        assert known_kl(measured, form) == kl
    assert known_kl(open_checkpoint(str(QUANTIZED / "awq")), FULL) is None
    assert known_kl(open_checkpoint(str(FILES / "k-quants.gguf")), FULL) is None
