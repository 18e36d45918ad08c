"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.files import read_kept, replace_file, sync_folder


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced(tmp_path: Path, sync: bool) -> None:
    """Its owner alone can read it, and no draft is left."""
    path = tmp_path / "file"
    for data in (b"first", bytearray(b"second")):
        replace_file(path, data, sync)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Wherever it happens."""
    path = tmp_path / "file"
    path.write_bytes(b"first")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"second", sync=True)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_without_sync_the_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes milliseconds, and a cache can be made again."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    replace_file(tmp_path / "file", b"data")
    assert synced == []
    replace_file(tmp_path / "file", b"data", sync=True)
    assert len(synced) == 1


def test_a_long_name_has_a_draft_too(tmp_path: Path) -> None:
    """The longest that a file system takes, in letters of any size."""
    for name in ("x" * 255, "\N{FISH}" * 63):
        replace_file(tmp_path / name, b"data")
        assert (tmp_path / name).read_bytes() == b"data"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """It is not made."""
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "none" / "file", b"data")


def test_a_file_that_was_kept(tmp_path: Path) -> None:
    """It is read up to a size; one that is larger, and none at all, are told apart."""
    path = tmp_path / "file"
    with pytest.raises(UsageError, match=f"cannot read {path}: No such file"):
        read_kept(path, 4, "saved thing")
    path.write_bytes(b"four")
    assert read_kept(path, 4, "saved thing") == b"four"
    with pytest.raises(UsageError, match=f"{path} is no saved thing: it is larger than 0 MB"):
        read_kept(path, 3, "saved thing")


def test_no_more_is_read_than_there_may_be() -> None:
    """A device says that it is empty, and has no end."""
    with pytest.raises(UsageError, match="/dev/zero is no saved chat: it is larger than 1 MB"):
        read_kept(Path("/dev/zero"), 1 << 20, "saved chat")


@pytest.mark.parametrize("name", ["gone", ".", "a\0b", "x" * 300])
def test_what_cannot_be_read(tmp_path: Path, name: str) -> None:
    """Is an error of ours, whatever the name."""
    with pytest.raises(UsageError, match="cannot read"):
        read_kept(tmp_path / name, 10, "saved chat")


def test_a_folder_is_brought_to_the_disk(tmp_path: Path) -> None:
    """One that is not there is an error of the system's."""
    sync_folder(tmp_path)
    with pytest.raises(OSError):
        sync_folder(tmp_path / "gone")
