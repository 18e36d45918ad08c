"""All phases of one quantization, in a folder where it goes on after it was ended at any moment."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from shoal.errors import CheckpointError, UsageError
from shoal.files import replace_file
from shoal.model.weights.model_source import open_checkpoint
from shoal.model.weights.tokenizer import load_tokenizer
from shoal.quantize.bit_plan import BitPlan, check_target, plan_bits
from shoal.quantize.calibration import Text, Tokens, content_digest, digest_of, package_text, read_text, token_rows
from shoal.quantize.evaluation import Evaluation, compare, run_through
from shoal.quantize.measurement import Measurement, encode_measurement, read_measurement
from shoal.quantize.measuring import Measuring, Progress
from shoal.quantize.output_directory import VERSION, copy_other_files, publish, write_config, write_weights
from shoal.quantize.quantization_report import (
    PAGE,
    REPORT,
    JobKey,
    QuantizationReport,
    encode_report,
    make_report,
    report_page,
)
from shoal.quantize.quantize_options import QuantizeOptions
from shoal.quantize.quantizing import Quantizing
from shoal.quantize.source_model import SourceModel
from shoal.quantize.state_files import StateFile

JOB = "job.json"
MEASUREMENT = "measurement.json"
MADE = "made"


class _Texts(NamedTuple):
    """Rows of tokens for calibration and for the report, and what the first are called."""

    calibration: Tokens
    evaluation: Tokens
    name: str


class QuantizationJob:
    """Makes a directory for each target of the options. `work` is removed at the end."""

    def __init__(self, options: QuantizeOptions, progress: Progress) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._options = options
        self._progress = progress
        self._model = SourceModel.open(options.model, options.revision)
        self._layers = [layer for block in self._model.layers for layer in block]
        for bits in options.bits:
            check_target(self._layers, bits)
        self._texts = _texts(options, load_tokenizer(self._model.checkpoint).encode)
        self.directories = options.directories(self._model.checkpoint.name)
        first = next(iter(self.directories.values()))
        self.work = (options.out or first).with_name((options.out or first).name + ".work")
        given = options.measurement
        self._given = None if given is None else read_measurement(given, self._model.fingerprint)
        self._key = JobKey(
            self._model.fingerprint,
            digest_of(self._texts.calibration),
            digest_of(self._texts.evaluation),
            "" if self._given is None else content_digest(encode_measurement(self._given)),
            options.head_bits,
        )

    def run(self, made: Callable[[Path, QuantizationReport], None]) -> None:
        """All targets; `made` hears of each directory. Raises UsageError for one that is there already and another's."""
        left = {bits: path for bits, path in self.directories.items() if not self._is_made(path, bits)}
        self._take_up()
        measurement = self._measurement()
        for bits, path in left.items():
            made(path, self._quantize(measurement, bits, path))
        shutil.rmtree(self.work)

    def _is_made(self, path: Path, bits: float) -> bool:
        """Whether an earlier run of this job has made a directory; raises UsageError where something else is there."""
        if not path.exists():
            return False
        try:
            report = msgspec.json.decode((path / REPORT).read_bytes(), type=QuantizationReport)
        except (OSError, msgspec.DecodeError) as error:
            raise UsageError(f"{path} is there already", "out") from error
        if self.work.exists() and report.job == self._key and report.target == bits:
            return True
        raise UsageError(f"{path} is there already", "out")

    def _take_up(self) -> None:
        """The folder of work, new or as it was left; raises UsageError where it is that of another job."""
        self.work.mkdir(parents=True, exist_ok=True)
        file = self.work / JOB
        if not file.exists():
            replace_file(file, msgspec.json.encode(self._key), sync=True)
        try:
            found = msgspec.json.decode(file.read_bytes(), type=JobKey)
        except msgspec.DecodeError as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        if found != self._key:
            raise UsageError(
                f"{self.work} is the unfinished work of another quantization: remove it or choose another --out"
            )

    def _measurement(self) -> Measurement:
        if self._given is not None:
            return self._given
        folder = self.work / "measure"
        folder.mkdir(exist_ok=True)
        if (folder / MEASUREMENT).exists():
            return read_measurement(folder / MEASUREMENT, self._model.fingerprint)
        return Measuring(self._model, self._texts.calibration, folder, self._progress).run(self._key.calibration)

    def _quantize(self, measurement: Measurement, bits: float, path: Path) -> QuantizationReport:
        folder = self.work / f"{bits:g}bpw"
        folder.mkdir(exist_ok=True)
        plan = plan_bits(self._layers, measurement.options(self._model.quantizable), bits)
        quantizing = Quantizing(self._model, self._texts.calibration, folder, self._progress)
        quantizing.run(plan, self._options.head_bits, f"quantizing to {bits:g} bits")
        made = self._assemble(quantizing, folder / MADE, bits)
        replace_file(made / MEASUREMENT, encode_measurement(measurement))
        report = self._report(plan, quantizing, self._evaluate(made, folder, bits), made, bits)
        replace_file(made / REPORT, encode_report(report))
        replace_file(made / PAGE, report_page(report).encode())
        path.parent.mkdir(parents=True, exist_ok=True)
        publish(made, path)
        shutil.rmtree(folder)
        return report

    def _assemble(self, quantizing: Quantizing, made: Path, bits: float) -> Path:
        """The directory with weights, tokenizer and, as its last file, the configuration."""
        if (made / "config.json").exists():
            return made
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        parts = [quantizing.block_file(block) for block in range(self._model.config.num_blocks)]
        write_weights(self._model, [*parts, *([quantizing.head_file] if quantizing.head_file.exists() else [])], made)
        copy_other_files(self._model.checkpoint, made)
        rows, length = self._texts.calibration.shape
        entry = {
            "quant_method": "exl2",
            "version": VERSION,
            "bits": bits,
            "head_bits": self._options.head_bits,
            "calibration": {"rows": rows, "length": length, "dataset": self._texts.name},
            "base_fingerprint": self._model.fingerprint,
        }
        write_config(self._model, made, entry)
        return made

    def _evaluate(self, made: Path, folder: Path, bits: float) -> Evaluation:
        kept = folder / "evaluation.json"
        if kept.exists():
            return msgspec.json.decode(kept.read_bytes(), type=Evaluation)
        quantized, tokens = open_checkpoint(str(made)), self._texts.evaluation
        theirs = run_through(quantized, tokens, folder, "judged", self._progress, f"judging {bits:g} bits")
        found = compare(self._model.checkpoint, quantized, (self._original(), theirs), tokens)
        replace_file(kept, msgspec.json.encode(found), sync=True)
        return found

    def _original(self) -> StateFile:
        """The report's text through the original; all targets are compared with it."""
        folder = self.work / "original"
        folder.mkdir(exist_ok=True)
        what = "reading the original"
        return run_through(self._model.checkpoint, self._texts.evaluation, folder, "original", self._progress, what)

    def _report(
        self, plan: BitPlan, quantizing: Quantizing, evaluation: Evaluation, made: Path, bits: float
    ) -> QuantizationReport:
        size_bits = 8 * sum(file.stat().st_size for file in made.glob("*.safetensors"))
        checkpoint = self._model.checkpoint
        parameters = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
        blocks, rounded = self._model.layers, quantizing.layers()
        return make_report(checkpoint.name, self._key, bits, plan, blocks, rounded, evaluation, size_bits / parameters)


def _texts(options: QuantizeOptions, encode: Callable[[str], list[int]]) -> _Texts:
    texts: list[Text] = [read_text(path) for path in options.calibration] or [package_text("calibration")]
    calibration = token_rows(texts, encode, options.rows, options.length)
    evaluation = token_rows([package_text("evaluation")], encode, options.evaluation_rows, options.length)
    return _Texts(calibration, evaluation, ", ".join(text.name for text in texts))
