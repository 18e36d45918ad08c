"""Files that are read in ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import CheckpointError
from shoal.model.weights.byte_source import LocalFile


def test_ranges_are_read_and_counted(tmp_path: Path) -> None:
    """Just the bytes that were asked for."""
    (tmp_path / "file").write_bytes(bytes(range(100)))
    file = LocalFile(tmp_path / "file")
    assert (file.size, file.name) == (100, str(tmp_path / "file"))
    assert file.read(10, 5) == bytearray(range(10, 15))
    assert file.read(98, 2) == bytearray([98, 99])
    assert file.bytes_read == 7


def test_a_file_that_shrinks_is_told(tmp_path: Path) -> None:
    """Where it ends now; nothing counts as read."""
    (tmp_path / "file").write_bytes(bytes(100))
    file = LocalFile(tmp_path / "file")
    (tmp_path / "file").write_bytes(bytes(30))
    with pytest.raises(CheckpointError, match="ends at 30"):
        file.read(20, 50)
    assert file.bytes_read == 0


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    """When it is opened, and when it is read."""
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        LocalFile(tmp_path / "none")
    (tmp_path / "file").write_bytes(bytes(10))
    file = LocalFile(tmp_path / "file")
    (tmp_path / "file").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        file.read(0, 1)
