"""A whole quantization: what comes out, and that it goes on after it was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from shoal.errors import UsageError
from shoal.model.families import model_config
from shoal.model.weights.block_loading import load_blocks, load_ends
from shoal.model.weights.model_source import open_checkpoint
from shoal.quantize.quantization_job import QuantizationJob
from shoal.quantize.quantization_report import QuantizationReport
from shoal.quantize.quantize_options import QuantizeOptions
from shoal.types import Span
from tests.support.quantized_models import small_llama, small_options

KILLED_WHEN = {
    "begun": "job.json",
    "measuring": "measure/measured-00000.json",
    "measured": "measure/measurement.json",
    "quantizing": "4bpw/block-00001.json",
    "the head": "4bpw/head.safetensors",
    "putting together": "4bpw/made/*",
    "judging": "4bpw/judged-00001.states",
}
"""By phase a file that is there when it has begun."""

COMMAND = """
import sys
from pathlib import Path
from tests.support.quantized_models import small_options
from shoal.quantize.quantization_job import QuantizationJob
options = small_options(Path(sys.argv[1]), Path(sys.argv[2]))
QuantizationJob(options, lambda *_: None).run(lambda *_: None)
"""


def quantized(options: QuantizeOptions) -> list[QuantizationReport]:
    """The reports of all directories."""
    found: list[QuantizationReport] = []
    QuantizationJob(options, lambda *_: None).run(lambda _, report: found.append(report))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied one."""
    return small_llama(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run makes."""
    out = tmp_path_factory.mktemp("made") / "out"
    quantized(small_options(model, out))
    return out


def test_the_directory_is_an_exl2_checkpoint(model: Path, made: Path) -> None:
    """Layout, dtypes, the entry of the configuration, the head beside the embedding, the tokenizer; nothing else is left."""
    tensors = load_file(made / "output.safetensors")
    assert "lm_head.q_weight" in tensors
    assert {str(tensor.dtype) for name, tensor in tensors.items() if ".q_" not in name} == {"torch.float16"}
    assert not any(name.endswith("proj.weight") for name in tensors)
    config, source = (json.loads((path / "config.json").read_text()) for path in (made, model))
    entry = config.pop("quantization_config")
    assert config == source
    assert (entry["quant_method"], entry["bits"], entry["head_bits"]) == ("exl2", 4.0, 6)
    assert (made / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert [path.name for path in made.parent.iterdir()] == ["out"]


def test_it_is_served_from_there(made: Path) -> None:
    """Blocks and ends are read, the head as a matrix of its own."""
    checkpoint = open_checkpoint(str(made))
    config = model_config(checkpoint.config)
    assert len(load_blocks(checkpoint, config, Span(0, config.num_blocks))) == 3
    load_ends(checkpoint, config)


def test_the_report_says_what_lies_in_the_file(made: Path) -> None:
    """Real bits within a per cent below the target; a page without anything from elsewhere."""
    report = json.loads((made / "quantization.json").read_text())
    tensors = load_file(made / "output.safetensors")
    bits = 8 * sum(one.nbytes for name, one in tensors.items() if "proj.q_" in name)
    weights = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 160 * 3)
    assert report["bits_per_weight"] == pytest.approx(bits / weights)
    assert 0.99 * 4 <= bits / weights <= 4
    assert 0 < report["evaluation"]["divergence"] < 1
    assert len(report["layers"]) == 21
    page = (made / "quantization.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page
    assert "<script" not in page


def test_a_directory_is_not_overwritten(model: Path, made: Path) -> None:
    """Neither a quantization nor anything else."""
    before = contents(made)
    with pytest.raises(UsageError, match="there already"):
        quantized(small_options(model, made))
    assert contents(made) == before


def test_several_targets_and_a_measurement_that_is_used_again(model: Path, made: Path, tmp_path: Path) -> None:
    """Each is what a run of its own makes."""
    measurement = made / "measurement.json"
    reports = quantized(small_options(model, tmp_path / "both", bits="3,4", measurement=measurement))
    assert [report.target for report in reports] == [3.0, 4.0]
    assert reports[0].evaluation.divergence > reports[1].evaluation.divergence
    weights = "output.safetensors"
    assert (tmp_path / "both" / "4bpw" / weights).read_bytes() == (made / weights).read_bytes()
    assert (tmp_path / "both" / "3bpw" / "measurement.json").read_bytes() == measurement.read_bytes()


def test_a_target_below_the_least_is_refused(model: Path, made: Path, tmp_path: Path) -> None:
    """With what the model takes at least."""
    with pytest.raises(UsageError, match="at least"):
        quantized(small_options(model, tmp_path / "out", bits=2.0, measurement=made / "measurement.json"))


def test_work_of_another_job_is_not_touched(model: Path, tmp_path: Path) -> None:
    """Its folder is named."""
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "job.json").write_bytes(
        b'{"fingerprint":"","calibration":"","evaluation":"","measurement":"","head_bits":6}'
    )
    with pytest.raises(UsageError, match="another quantization"):
        quantized(small_options(model, tmp_path / "out"))


@pytest.mark.parametrize("phase", KILLED_WHEN)
def test_killed_in_any_phase_it_makes_the_same_bytes(model: Path, made: Path, tmp_path: Path, phase: str) -> None:
    """SIGKILL as soon as a phase has begun; then the same command again."""
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(model), str(out)])
    deadline = time.monotonic() + 90
    while not list((tmp_path / "out.work").glob(KILLED_WHEN[phase])) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    quantized(small_options(model, out))
    assert contents(out) == contents(made)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
