"""Quantizing takes the memory of a few blocks, whatever the model's size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.quantized_models import small_llama

pytestmark = pytest.mark.timeout(300)

SIZES = {"hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 4, "head_dim": 64}
BLOCK_BYTES = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 640)

COMMAND = """
import resource, sys
from pathlib import Path
from tests.support.quantized_models import small_options
from shoal.quantize.quantization_job import QuantizationJob
options = small_options(Path(sys.argv[1]), Path(sys.argv[2]), rows=2)
job = QuantizationJob(options, lambda *_: None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
job.run(lambda *_: None)
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(folder: Path, blocks: int) -> int:
    """What a process takes at most beyond what it had before it began, for a model of so many equal blocks."""
    model = small_llama(folder / "model", num_hidden_layers=blocks, num_key_value_heads=2, **SIZES)
    run = [sys.executable, "-c", COMMAND, str(model), str(folder / "out")]
    before, peak = map(int, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    return peak - before


def test_the_peak_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Six blocks more are 16 MB more in fp32; the peak grows by less than half of that."""
    few, many = (peak_bytes(tmp_path / str(blocks), blocks) for blocks in (2, 8))
    assert many - few < 3 * BLOCK_BYTES
    assert many < 4 * BLOCK_BYTES + (200 << 20)
