"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from shoal.errors import UsageError

DRAFT_CHARACTERS = 32
"""Of a file's name in its draft's: the longest letters have four bytes, and a name 255."""


def replace_file(path: Path, data: bytes | bytearray, sync: bool = False) -> None:
    """Write a file that only its owner can read; what was there before stays until the new one is whole.

    `sync`: it is on the disk when this returns, whatever happens to the machine. Raises OSError.
    """
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:DRAFT_CHARACTERS]}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def read_kept(path: Path, most_bytes: int, what: str) -> bytes:
    """A file that the user names, by which `what` is meant; raises UsageError where there is none to read, or a larger one."""
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)  # a device may have no end, and says that it is empty
    except (OSError, ValueError) as error:  # no file, no permission; a name that cannot be
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > most_bytes:
        raise UsageError(f"{path} is no {what}: it is larger than {most_bytes >> 20} MB")
    return data


def sync_folder(folder: Path) -> None:
    """What was renamed in a folder is on the disk when this returns, where the system can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
