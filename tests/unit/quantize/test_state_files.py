"""States on disk: whole or not at all, and how far a run is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shoal.errors import CheckpointError
from shoal.quantize.state_files import StateFile, StateSeries


def test_rows_come_back(tmp_path: Path) -> None:
    """Whatever batches they were written in."""
    rows = torch.randn(7, 3, 4)
    file = StateFile(tmp_path / "a.states", (3, 4))
    file.write(torch.split(rows, 3))
    assert file.rows == 7
    assert torch.equal(file.read(2, 3), rows[2:5])
    assert torch.equal(torch.cat(list(file.batches(2))), rows)
    assert torch.equal(StateFile(file.path, (4,)).read(3, 3), rows[1])


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    """The old one stays when writing fails, and a draft counts for nothing until it is committed."""
    series = StateSeries(tmp_path, "clean", (2,))
    assert series.reached is None
    series[0].write([torch.zeros(4, 2)])

    def broken() -> Iterator[torch.Tensor]:
        yield torch.ones(1, 2)
        raise KeyError

    with pytest.raises(KeyError):
        series[0].write(broken())
    assert torch.equal(series[0].read(0, 9), torch.zeros(4, 2))
    series[1].write_draft([torch.ones(4, 2)])
    assert series.reached == 0
    series[1].commit()
    assert series.reached == 1


def test_a_run_begins_once(tmp_path: Path) -> None:
    """With the embedded tokens; later it goes on with the block that it was at."""
    series = StateSeries(tmp_path, "clean", (2,))
    assert series.begin(lambda: [torch.ones(4, 2)]) == 0
    assert torch.equal(series[0].read(0, 4), torch.ones(4, 2))
    series[1].write([torch.zeros(4, 2)])
    assert series.begin(lambda: [torch.zeros(4, 2)]) == 1
    assert torch.equal(series[0].read(0, 4), torch.ones(4, 2))


def test_states_that_are_not_needed_are_removed(tmp_path: Path) -> None:
    """Those of other series stay."""
    series, other = StateSeries(tmp_path, "clean", (2,)), StateSeries(tmp_path, "probes", (2,))
    for block in range(3):
        series[block].write([torch.zeros(1, 2)])
    other[0].write([])
    series.forget_before(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean-00002.states", "probes-00000.states"]
    assert other[0].rows == 0


def test_damage_is_named(tmp_path: Path) -> None:
    """A file of half a row."""
    (tmp_path / "a.states").write_bytes(bytes(12))
    with pytest.raises(CheckpointError, match="does not hold rows"):
        assert StateFile(tmp_path / "a.states", (2,)).rows
