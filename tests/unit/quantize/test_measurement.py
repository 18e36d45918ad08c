"""A measurement's file is a stranger's: what it says is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import UsageError
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.measurement import FORM, MeasuredLayer, Measurement, encode_measurement, read_measurement
from shoal.quantize.row_groups import WIDTHS, MatrixShape

LAYER = QuantizedLayer("model.layers.0.mlp.up_proj", "up", MatrixShape(96, 40))


def a_measurement() -> Measurement:
    """Of one layer."""
    errors = {size: [[float(8 - bits) for bits in WIDTHS]] * -(-96 // size) for size in (32, 64)}
    return Measurement(FORM, "f" * 32, "c", [MeasuredLayer(LAYER.key, 96, 40, errors, 2.0, 0.5)])


def test_it_comes_back_and_gives_options_in_nats(tmp_path: Path) -> None:
    """An error counts a quarter: two units moved the model by half a nat."""
    path = tmp_path / "measurement.json"
    path.write_bytes(encode_measurement(a_measurement()))
    found = read_measurement(path, "f" * 32)
    assert found == a_measurement()
    (options,) = found.options([LAYER])
    flat = next(option for option in options if [group.bits for group in option.groups] == [4, 4, 4])
    assert flat.error == 3 * 4 / 4


Change = Callable[[dict[str, Any]], object]


def layer(change: Callable[[dict[str, Any]], object]) -> Change:
    """A change of the first layer."""
    return lambda whole: change(whole["layers"][0])


LIES: dict[str, tuple[Change, str]] = {
    "another form": (lambda whole: whole.update(form="shoal measurement 9"), "version"),
    "another model": (lambda whole: whole.update(fingerprint="0"), "another model"),
    "no layers": (lambda whole: whole.pop("layers"), "layers"),
    "a size of groups": (layer(lambda one: one["errors"].update({"16": [[0.0] * 6] * 6})), "other sizes"),
    "no errors": (layer(lambda one: one.update(errors={})), "other sizes"),
    "a group too few": (layer(lambda one: one["errors"]["32"].pop()), "each group of 32"),
    "a width too few": (layer(lambda one: one["errors"]["64"][1].pop()), "each group of 64"),
    "a negative error": (layer(lambda one: one["errors"]["64"][0].append(-1.0)), "layers"),
    "an error that is none": (layer(lambda one: one.update(probe_error=None)), "probe_error"),
    "an endless error": (layer(lambda one: one.update(probe_error=1e999)), "finite|range|number"),
    "inputs beyond all": (layer(lambda one: one.update(inputs=1 << 40)), "inputs"),
    "text": (layer(lambda one: one.update(errors="many")), "errors"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(tmp_path: Path, lie: str) -> None:
    """Each by our own error."""
    change, said = LIES[lie]
    whole = json.loads(encode_measurement(a_measurement()))
    change(whole)
    path = tmp_path / "measurement.json"
    path.write_text(json.dumps(whole).replace("Infinity", "1e999"))
    with pytest.raises(UsageError, match=said):
        read_measurement(path, "f" * 32)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"{}"])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    """Half a file, a deep one, no text."""
    path = tmp_path / "measurement.json"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_measurement(path, "f" * 32)


def test_layers_of_another_model_are_refused() -> None:
    """By name and by shape."""
    with pytest.raises(UsageError, match="other layers"):
        a_measurement().options([LAYER._replace(key="model.layers.1.mlp.up_proj")])
    with pytest.raises(UsageError, match="another shape"):
        a_measurement().options([LAYER._replace(shape=MatrixShape(96, 41))])
