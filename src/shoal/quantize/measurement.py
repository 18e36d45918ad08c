"""What a measurement says of a model's layers, as it is kept in a file and read from a stranger's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.errors import UsageError
from shoal.files import read_kept
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.layer_options import LayerOption, layer_options
from shoal.quantize.row_groups import GROUP_SIZES, WIDTHS, cut

FORM = "shoal measurement 1"
MAX_FILE_BYTES = 1 << 30
MAX_INPUTS = 1 << 20

Error = Annotated[float, Meta(ge=0)]


class MeasuredLayer(msgspec.Struct, frozen=True):
    """What each group of a layer loses at each width, for each size of groups, in squared error of the layer's outputs.

    `probe_error`, `probe_divergence`: what its kind's layers lost in this block when they were rounded to `PROBE_BITS`, and
    how far that moved the model's distribution of the next token, in nats.
    """

    key: str
    inputs: Annotated[int, Meta(ge=1, le=MAX_INPUTS)]
    outputs: Annotated[int, Meta(ge=1, le=MAX_INPUTS)]
    errors: dict[int, list[list[Error]]]
    probe_error: Error
    probe_divergence: float

    @property
    def sensitivity(self) -> float:
        """Nats for each unit of the layer's error."""
        return max(self.probe_divergence, 0.0) / self.probe_error if self.probe_error > 0 else 0.0


class Measurement(msgspec.Struct, frozen=True):
    """All layers of a model, block after block; `calibration` says on what text it was made."""

    form: str
    fingerprint: str
    calibration: str
    layers: list[MeasuredLayer]

    def options(self, layers: list[QuantizedLayer]) -> list[list[LayerOption]]:
        """The options of these layers, whose errors are nats now.

        Raises UsageError where the measurement is not of these layers.
        """
        if [one.key for one in self.layers] != [layer.key for layer in layers]:
            raise UsageError("the measurement is of other layers than the model has", "measurement")
        return [_options(measured, layer) for measured, layer in zip(self.layers, layers, strict=True)]


def _options(measured: MeasuredLayer, layer: QuantizedLayer) -> list[LayerOption]:
    shape = layer.shape
    if (measured.inputs, measured.outputs) != (shape.inputs, shape.outputs):
        raise UsageError(f"the measurement has {layer.key} of another shape than the model", "measurement")
    found = layer_options(shape, measured.errors)
    return [option._replace(error=option.error * measured.sensitivity) for option in found]


def encode_measurement(measurement: Measurement) -> bytes:
    """The file's bytes."""
    return msgspec.json.encode(measurement)


def read_measurement(path: Path, fingerprint: str) -> Measurement:
    """A measurement of the model with this fingerprint; raises UsageError for anything else."""
    try:
        found = msgspec.json.decode(read_kept(path, MAX_FILE_BYTES, "measurement"), type=Measurement)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no measurement: {error}", "measurement") from error
    if found.form != FORM:
        raise UsageError(f"{path} is no measurement that this version reads: {found.form[:40]!r}", "measurement")
    if found.fingerprint != fingerprint:
        raise UsageError(f"{path} is the measurement of another model", "measurement")
    for layer in found.layers:
        _check(path, layer)
    return found


def _check(path: Path, layer: MeasuredLayer) -> None:
    what = f"{path}: {layer.key[:100]}"
    if not layer.errors or not set(layer.errors) <= set(GROUP_SIZES):
        raise UsageError(f"{what} has groups of other sizes than {GROUP_SIZES}", "measurement")
    for size, table in layer.errors.items():
        if len(table) != len(cut(layer.inputs, size)) or any(len(row) != len(WIDTHS) for row in table):
            raise UsageError(f"{what} has no error for each group of {size} at each of {WIDTHS} bits", "measurement")
    numbers = (number for table in layer.errors.values() for row in table for number in row)
    if not all(map(math.isfinite, (*numbers, layer.probe_error, layer.probe_divergence))):
        raise UsageError(f"{what} has numbers that are not finite", "measurement")
