"""Hidden states between blocks, on disk: a file is there whole or not at all, and read a few rows at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.files import sync_folder

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})\.states")


class StateFile:
    """States [rows, …] in fp32 in a file without a header; `shape` is that of one row."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = shape
        self._row_bytes = 4 * int(np.prod(shape))

    @property
    def rows(self) -> int:
        """How many there are; raises CheckpointError for a file that does not consist of such rows."""
        rows, left = divmod(self.path.stat().st_size, self._row_bytes)
        if left:
            raise CheckpointError(f"{self.path} does not hold rows of {list(self.shape)}: begin anew without it")
        return rows

    def read(self, first: int, count: int) -> Tensor:
        """Rows [count, …]; fewer at the end."""
        with self.path.open("rb") as file:
            file.seek(first * self._row_bytes)
            data = np.fromfile(file, np.float32, count * (self._row_bytes // 4))
        return torch.from_numpy(data).view(-1, *self.shape)

    def batches(self, count: int) -> Iterator[Tensor]:
        """All rows, `count` at a time."""
        for first in range(0, self.rows, count):
            yield self.read(first, count)

    def write(self, batches: Iterable[Tensor]) -> None:
        """The file with these rows, one batch after the other; what was there before stays until it is whole."""
        self.write_draft(batches)
        self.commit()

    def write_draft(self, batches: Iterable[Tensor]) -> None:
        """The rows on the disk, which are not there for anyone until `commit`."""
        with self._draft.open("wb") as file:
            for states in batches:
                file.write(states.contiguous().numpy().data)
            file.flush()
            os.fsync(file.fileno())

    def commit(self) -> None:
        """From now on the file is there."""
        os.replace(self._draft, self.path)
        sync_folder(self.path.parent)

    @property
    def _draft(self) -> Path:
        return self.path.with_suffix(".draft")


class StateSeries:
    """The states before block 0, 1, 2 … of one run: a file for each, of which the last one says how far the run is."""

    def __init__(self, folder: Path, stem: str, shape: tuple[int, ...]) -> None:
        self._folder = folder
        self._stem = stem
        self._shape = shape

    def __getitem__(self, block: int) -> StateFile:
        return StateFile(self._folder / f"{self._stem}-{block:05}.states", self._shape)

    @property
    def reached(self) -> int | None:
        """The last block before which there are states; None: there are none."""
        found = [match for path in self._folder.glob("*.states") if (match := _NAME.fullmatch(path.name))]
        return max((int(match["number"]) for match in found if match["stem"] == self._stem), default=None)

    def begin(self, embedded: Callable[[], Iterable[Tensor]]) -> int:
        """The block to go on with; where nothing was done yet, `embedded` gives the states before the first."""
        if self.reached is None:
            self[0].write(embedded())
        return self.reached or 0

    def forget_before(self, block: int) -> None:
        """Remove states that are not needed any more."""
        for earlier in range(block - 1, -1, -1):
            path = self[earlier].path
            if not path.exists():
                return
            path.unlink()
