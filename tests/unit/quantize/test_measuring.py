"""What a measurement foresees is what happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.quantize.calibration import Tokens
from shoal.quantize.hessian import factored
from shoal.quantize.measurement import Measurement, read_measurement
from shoal.quantize.measuring import Measuring, group_errors
from shoal.quantize.rounding import round_matrix
from shoal.quantize.row_groups import WIDTHS, uniform
from shoal.quantize.source_model import SourceModel
from tests.support.quantized_models import small_llama
from tests.unit.quantize.test_hessian import hessian

LENGTH = 64


def some_tokens(rows: int = 6) -> Tokens:
    """Random ones."""
    return np.random.default_rng(1).integers(0, 258, (rows, LENGTH)).astype(np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    """A random Llama."""
    return SourceModel.open(str(small_llama(tmp_path_factory.mktemp("model"))))


def measured(model: SourceModel, folder: Path) -> Measurement:
    """With what it said."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    return Measuring(model, some_tokens(), folder, lambda *_: None).run("text")


def test_every_layer_is_measured_and_kept(model: SourceModel, tmp_path: Path) -> None:
    """The file is that of the result, and states of blocks before the last are gone."""
    found = measured(model, tmp_path)
    assert [layer.key for layer in found.layers] == [layer.key for layer in model.quantizable]
    assert read_measurement(tmp_path / "measurement.json", model.fingerprint) == found
    assert all(layer.probe_divergence > 0 and layer.probe_error > 0 for layer in found.layers)
    assert sorted(path.name for path in tmp_path.glob("*.states")) == ["clean-00003.states", "probes-00003.states"]


def test_a_run_that_was_ended_goes_on(model: SourceModel, tmp_path: Path) -> None:
    """After any number of blocks, and the numbers are the same."""
    whole = measured(model, tmp_path / "whole")
    for ends in range(3):
        folder = tmp_path / str(ends)
        folder.mkdir()

        def stop(what: str, done: int, total: int, folder: Path = folder, ends: int = ends) -> None:
            if len(list(folder.glob("measured-*"))) > ends:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            Measuring(model, some_tokens(), folder, stop).run("text")
        assert measured(model, folder) == whole


@pytest.mark.parametrize("bits", WIDTHS)
def test_group_errors_foresee_those_of_rounding(model: SourceModel, bits: int) -> None:
    """Feedback moves the weights that come later, so that the sum is not exactly what rounding leaves."""
    layer = model.layers[0][0]
    weight, factor = 0.1 * torch.randn(64, 64, generator=torch.Generator().manual_seed(2)), factored(hessian(64))
    table = group_errors(weight, factor, layer)
    assert set(table) == {32, 64}
    foreseen = sum(row[WIDTHS.index(bits)] for row in table[32])
    assert round_matrix(weight, factor, uniform(64, bits, 32)).error == pytest.approx(foreseen, rel=0.35)
