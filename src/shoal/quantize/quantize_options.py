"""What can be said of a quantization."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from shoal.errors import UsageError
from shoal.options import Options, option

LEAST_BITS = 2.0
MOST_BITS = 8.5

HeadBits = Literal[2, 3, 4, 5, 6, 8]


def _targets(given: str | float | Sequence[float]) -> tuple[float, ...]:
    """`"2.5,3,4"`, one number or several; raises UsageError."""
    texts = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int | float) else given
    bits = tuple(float(one) for one in texts)
    if not bits or len(set(bits)) < len(bits) or not all(LEAST_BITS <= one <= MOST_BITS for one in bits):
        raise UsageError(
            f"it is one or several different numbers from {LEAST_BITS:g} to {MOST_BITS:g}, like 3.5 or 2.5,3,4"
        )
    return bits


def _paths(given: str | Sequence[str]) -> tuple[Path, ...]:
    return tuple(Path(one) for one in ([given] if isinstance(given, str) else given))


class QuantizeOptions(Options, frozen=True, kw_only=True):
    """Options of `shoal quantize`; `bits` count all that the layers of the blocks take in the file."""

    model: Annotated[str, option("Hub id, directory of safetensors, or GGUF file.", "Model", shown=False)]
    revision: Annotated[str | None, option("Revision on the hub.", "Model")] = None
    bits: Annotated[
        tuple[float, ...],
        option("Bits per weight, or several targets.", "Model", form="numbers like 3.5 or 2.5,3,4", parse=_targets),
    ] = (4.0,)
    head_bits: Annotated[HeadBits, option("Bits of the head, which the target leaves out.", "Model")] = 6
    calibration: Annotated[
        tuple[Path, ...],
        option(
            "A text to measure with instead of the package's; may be repeated.", "Model", parse=_paths, repeated=True
        ),
    ] = ()
    rows: Annotated[int, option("Rows of tokens of the calibration text.", "Model", least=1, most=1 << 16)] = 64
    length: Annotated[int, option("Tokens of a row.", "Model", least=16, most=1 << 16)] = 512
    evaluation_rows: Annotated[
        int, option("Rows of a text that calibration does not see, for the report.", "Model", least=1, most=1 << 16)
    ] = 8
    measurement: Annotated[
        Path | None, option("The measurement.json of an earlier run, for other targets.", "Model")
    ] = None
    out: Annotated[
        Path | None, option("The directory to make, or that of the directories, if there are several.", "Output")
    ] = None
    threads: Annotated[int | None, option("Compute threads.", "Limits", least=1, most=1024)] = None

    def directories(self, name: str) -> dict[float, Path]:
        """The directory of each target, for a model of this name."""
        short = name.rpartition("/")[2] or "model"
        if self.out is None:
            return {bits: Path(f"{short}-exl2-{bits:g}bpw") for bits in self.bits}
        if len(self.bits) == 1:
            return {self.bits[0]: self.out}
        return {bits: self.out / f"{bits:g}bpw" for bits in self.bits}
