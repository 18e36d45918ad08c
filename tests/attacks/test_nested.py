"""Statements that nest deeper than Python's stack: malformed like any other, wherever they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.cli.chat_commands import _read
from shoal.client.saved_reply import read_saved
from shoal.errors import RecordError, UsageError
from shoal.swarm.directory.records import parse_record, verify_acceptance
from shoal.swarm.membership.storage import NodeFolder

NESTED = bytes(64) + b"\x81\xa1x" + b"\x91" * 950 + b"\xc0"
"""A map with an unknown key, whose value is 950 lists in each other; it has the size of a record."""


def deep(call: Callable[[], object], frames: int = 200) -> object:
    """As from the middle of a program, whose stack is not empty."""
    return deep(call, frames - 1) if frames else call()


@pytest.mark.parametrize(
    "read", [parse_record, lambda data: verify_acceptance(data, 0.0)], ids=["record", "acceptance"]
)
def test_nested_lists_are_no_statement(read: Callable[[bytes], object]) -> None:
    """The reader says so; nothing else is raised."""
    with pytest.raises(RecordError, match="does not parse"):
        deep(lambda: read(NESTED))


DEEP_JSON = b'{"x":' + b"[" * 100_000
DEEP_MESSAGE = b"\x81\xa1x" + b"\x91" * 100_000


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (DEEP_MESSAGE, read_saved),
        (DEEP_JSON, _read),
        (DEEP_JSON, lambda path: NodeFolder(path.parent).kept()),
    ],
    ids=["reply", "chat", "membership"],
)
def test_nested_files_are_not_what_they_should_be(data: bytes, read: Callable[[Path], object], tmp_path: Path) -> None:
    """Each is named."""
    path = tmp_path / "member.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"member\.json is"):
        read(path)
