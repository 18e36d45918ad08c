"""`shoal quantize`: a model in a few bits per weight, as a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, interruptible, print_json
from shoal.cli.terminal import say, waits_for, write
from shoal.quantize.quantize_options import QuantizeOptions

if TYPE_CHECKING:
    from shoal.quantize.measuring import Progress
    from shoal.quantize.quantization_report import QuantizationReport


@with_option_flags()
def quantize(
    model: Annotated[str, typer.Argument(help="Hub id, directory of safetensors, or GGUF file.")],
    options: QuantizeOptions = QuantizeOptions(model=""),
    *,
    as_json: AsJson = False,
) -> None:
    """Write a model in EXL2: few bits where it bears that, more where it does not, measured on a text.

    What is done is kept in a folder beside the result, DIR.work. The same command goes on there after it was ended.
    """
    from shoal.quantize.quantization_job import QuantizationJob

    waits_for("opening the model")
    interruptible()
    job = QuantizationJob(msgspec.structs.replace(options, model=model), _progress())
    job.run(lambda path, report: _show(path, report, as_json))


def _progress() -> Progress:
    from shoal.clock import SYSTEM_CLOCK
    from shoal.quantize.time_left import TimeLeft

    left = TimeLeft(SYSTEM_CLOCK)

    def show(what: str, done: int, total: int) -> None:
        seconds = left.observe(what, done, total)
        rest = "" if seconds is None else f", {_duration(seconds)} left"
        waits_for(f"{what}: {100 * done // total} %{rest}", timed=False)

    return show


def _duration(seconds: float) -> str:
    """Roughly: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _show(path: Path, report: QuantizationReport, as_json: bool) -> None:
    found = report.evaluation
    if as_json:
        print_json({"directory": str(path), **msgspec.to_builtins(report)})
        return
    say(f"{report.bits_per_weight:.3f} bits per weight, {report.bits_per_parameter:.3f} per parameter of the file")
    say(
        f"{found.divergence:.4f} ± {found.divergence_error:.4f} nats from the original over {found.tokens:,} predictions"
    )
    say(
        f"perplexity {found.perplexity:.3f} (the original's: {found.original_perplexity:.3f}), {found.same_top:.1%} same"
    )
    write(f"{path}\n")
