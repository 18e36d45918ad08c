"""Bytes at an offset: the one thing that a checkpoint needs of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shoal.errors import CheckpointError


class ByteSource(Protocol):
    """A file that is read in ranges, near or far."""

    @property
    def name(self) -> str:
        """What to call it in errors."""
        ...

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    @property
    def bytes_read(self) -> int:
        """How many bytes were fetched so far."""
        ...

    def read(self, offset: int, length: int) -> bytearray:
        """Just these bytes, writable; raises CheckpointError when the file is shorter than it was."""
        ...


POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS keeps elsewhere."""

MAX_POINTER_BYTES = 1024


def refuse_pointer(source: ByteSource) -> None:
    """Raise CheckpointError for a file that only says where the model's is."""
    if len(POINTER) <= source.size <= MAX_POINTER_BYTES and source.read(0, len(POINTER)) == POINTER:
        raise CheckpointError(f"{source.name} is half a download: a Git LFS pointer without its file (git lfs pull)")


class LocalFile:
    """A file on this machine. Raises CheckpointError where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        self.bytes_read = 0

    def read(self, offset: int, length: int) -> bytearray:
        """ByteSource: read from the file."""
        data = bytearray(length)
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                got = file.readinto(data)
        except OSError as error:
            raise CheckpointError(f"{self.name} cannot be read: {error.strerror}") from error
        if got != length:
            raise CheckpointError(f"{self.name} ends at {offset + got}: it was cut off while it was read")
        self.bytes_read += length
        return data
