"""What a machine keeps of a private swarm, and who may read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.swarm.membership.storage import StoredMembership, SwarmFolder, default_home, write
from tests.unit.swarm.membership.statements import NODE, OTHER, SWARM


@pytest.mark.parametrize("name", ["", "../x", "Home", "a/b", "x" * 33, "a\n", ".", "-a"])
def test_names_are_safe_as_folders(name: str, tmp_path: Path) -> None:
    """A name from an invite or a command cannot leave its folder."""
    with pytest.raises(UsageError):
        SwarmFolder(name, tmp_path)


def test_files_are_private_and_whole(folder: SwarmFolder) -> None:
    """The owner's key can be read by its owner alone, and a second swarm does not replace it."""
    owner = folder.create_owner()
    assert (folder.path / "owner.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="already"):
        folder.create_owner()
    assert folder.owner().peer == owner.peer
    node = folder.node("server")
    assert node.kept() is None
    node.keep(StoredMembership(SWARM, b"certificate", ("ticket",)))
    assert node.kept() == StoredMembership(SWARM, b"certificate", ("ticket",))
    assert (node.path / "member.json").stat().st_mode & 0o777 == 0o600
    (node.path / "member.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match="damaged"):
        node.kept()


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """It is a mistake on this side, and told as one."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"):
        SwarmFolder("home", tmp_path / "file").create_owner()
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        write(tmp_path / "taken", b"data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_an_invite_is_claimed_once(folder: SwarmFolder) -> None:
    """The first node has it for good, for every process that looks."""
    node, id_ = folder.node("server"), b"i" * 16
    assert node.redeemed() == {}
    assert [node.claim(id_, peer) for peer in (NODE.peer, OTHER.peer, NODE.peer)] == [NODE.peer] * 3
    assert folder.node("server").redeemed() == {id_.hex(): NODE.peer}
    assert folder.node("client").redeemed() == {}
    assert [path.name for path in (node.path / "redeemed").iterdir()] == [id_.hex()]


def test_a_list_that_is_replaced_is_noticed(folder: SwarmFolder) -> None:
    """0 and nothing without one; afterwards another time and the new bytes."""
    assert (folder.revocations_changed_at(), folder.revocations()) == (0, b"")
    folder.keep_revocations(b"list")
    assert folder.revocations_changed_at() > 0
    assert folder.revocations() == b"list"


def test_where_files_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """SHOAL_HOME goes before the user's configuration folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/configured")
    monkeypatch.delenv("SHOAL_HOME", raising=False)
    assert default_home() == Path("/configured/shoal")
    monkeypatch.setenv("SHOAL_HOME", "/chosen")
    assert SwarmFolder("home").path == Path("/chosen/swarms/home")
