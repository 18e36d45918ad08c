"""A node's key: kept in a file, and what it signs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.swarm.identity import Identity, verify
from shoal.types import PeerId


def test_identities_are_kept_in_files(tmp_path: Path) -> None:
    """Made once with mode 0600, the same afterwards; anything else in the file is an error."""
    path = tmp_path / "deep" / "key"
    first = Identity.load(path)
    assert Identity.load(path).peer == first.peer
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["key"]
    path.write_text("not a key")
    with pytest.raises(UsageError, match="identity"):
        Identity.load(path)


@pytest.mark.parametrize("where", ["file/key", "folder", "x" * 300, "nul\0"])
def test_a_place_where_no_identity_can_be(tmp_path: Path, where: str) -> None:
    """A file for a folder, a folder for a file, a name that cannot be: the error names the place."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="identity"):
        Identity.load(tmp_path / where)


def test_a_key_of_small_order_signs_nothing() -> None:
    """A key that anybody can sign for is no node's."""
    key = bytes([1]) + bytes(31)
    assert not verify(PeerId(key.hex()), b"label", b"anything", key + bytes(32))


def test_a_signature_is_for_one_purpose_of_one_node() -> None:
    """Another label, body or node, and a changed or cut signature, verify nothing; nor does an id that is no key."""
    me, other = Identity.generate(), Identity.generate()
    signature = me.sign(b"label", b"body")
    assert verify(me.peer, b"label", b"body", signature)
    assert not verify(me.peer, b"another", b"body", signature)
    assert not verify(me.peer, b"label", b"bodies", signature)
    assert not verify(other.peer, b"label", b"body", signature)
    assert not verify(me.peer, b"label", b"body", bytes([signature[0] ^ 1]) + signature[1:])
    assert not verify(me.peer, b"label", b"body", signature[:-1])
    for peer in ("", "not a key", "ab" * 16):
        assert not verify(PeerId(peer), b"label", b"body", signature)


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was there first counts for the later process too, and no draft is left."""
    path, first, link = tmp_path / "key", Identity.generate(), os.link

    def too_late(source: Path, target: Path) -> None:
        target.write_text(first.key.private_bytes_raw().hex())
        link(source, target)

    monkeypatch.setattr("os.link", too_late)
    assert Identity.load(path).peer == first.peer
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is kept all the same, and no draft of it is left."""

    def no_link(source: Path, target: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", no_link)
    made = Identity.load(tmp_path / "key")
    assert Identity.load(tmp_path / "key").peer == made.peer
    assert [one.name for one in tmp_path.iterdir()] == ["key"]
