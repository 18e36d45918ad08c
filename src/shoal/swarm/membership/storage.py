"""What a machine keeps of a private swarm, as files that nobody else may read.

::

    $SHOAL_HOME/swarms/NAME/      default ~/.config/shoal/swarms/NAME
        owner.key                 the owner only: the swarm's key
        invites/ID                the owner only: what was invited, as JSON
        revocations               the newest list seen
        server/ and client/       one node each:
            node.key              its identity
            member.json           its certificate and where it can be renewed
            ticket                where the node was last reachable
            redeemed/ID           at a redeemer: which node has used an invite
        server.out-N/, client.out-N/  a node that was put out, and its key
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from pathlib import Path
from typing import Literal

import msgspec

from shoal.errors import UsageError
from shoal.files import replace_file
from shoal.swarm.identity import Identity
from shoal.swarm.membership.credentials import SwarmName
from shoal.types import PeerId

Role = Literal["server", "client"]


class PrivateSwarm(msgspec.Struct, frozen=True, kw_only=True):
    """Which private swarm a node belongs to: the name under which it is kept, and an invite when it is new there.

    `name` may be left out with an invite, which brings one. `home` replaces $SHOAL_HOME.
    """

    name: str = ""
    invite: str = ""
    delegation: str = ""
    home: Path | None = None


class StoredMembership(msgspec.Struct, frozen=True):
    """A node's membership. `peers` are the tickets of nodes that renew certificates, `contacts` those of servers met.

    `invite` is the id of the invite that it came by.
    """

    swarm: str
    certificate: bytes
    peers: tuple[str, ...] = ()
    delegation: bytes = b""
    contacts: tuple[str, ...] = ()
    invite: str = ""


class SwarmFolder:
    """One private swarm's files; raises UsageError for a name that cannot be one."""

    def __init__(self, name: str, home: Path | None = None) -> None:
        try:
            msgspec.convert(name, SwarmName)
        except msgspec.ValidationError as error:
            raise UsageError(f"a swarm's name has up to 32 of a-z, 0-9 and -, not {name!r}") from error
        self.name = name
        self.path = (home or default_home()) / "swarms" / name

    @property
    def tickets(self) -> Path:
        """The file in which the ways to a swarm are remembered that is not private: see `AddressBook`."""
        return self.path / "tickets"

    def owner(self) -> Identity | None:
        """The swarm's key, where this is its owner's machine; raises UsageError for a damaged file."""
        path = self.path / "owner.key"
        return Identity.load(path) if path.exists() else None

    def create_owner(self) -> Identity:
        """A new swarm's key; raises UsageError when there is something under this name already."""
        if self.path.exists():
            raise UsageError(f"there is a swarm {self.name!r} already, in {self.path}")
        _private(self.path)
        return Identity.load(self.path / "owner.key")

    def revocations(self) -> bytes:
        """The newest list kept; empty if there is none. Raises UsageError for a file with nothing in it."""
        path = self.path / "revocations"
        data = _read(path)
        if not data and path.exists():
            raise UsageError(f"the revocation list in {self.path} is damaged: {path.name} is empty")
        return data

    def keep_revocations(self, data: bytes) -> None:
        """Keep a verified list."""
        write(self.path / "revocations", data)

    def revocations_changed_at(self) -> int:
        """The file's time in nanoseconds, 0 without one: another process of this machine may have written it."""
        try:
            return (self.path / "revocations").stat().st_mtime_ns
        except OSError:
            return 0

    def node(self, role: Role) -> NodeFolder:
        """The files of this machine's node in this role."""
        return NodeFolder(self.path / role)


class NodeFolder:
    """One node's files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> Identity:
        """The node's key, made if there is none."""
        _private(self.path)
        return Identity.load(self.path / "node.key")

    def kept(self) -> StoredMembership | None:
        """The membership kept here, if any; raises UsageError for a damaged file."""
        data = _read(self.path / "member.json")
        if not data:
            return None
        try:
            return msgspec.json.decode(data, type=StoredMembership)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{self.path / 'member.json'} is damaged: {error}") from error

    def keep(self, kept: StoredMembership) -> None:
        """Replace the membership kept here."""
        write(self.path / "member.json", msgspec.json.encode(kept))

    def retire(self) -> None:
        """Put this node's files aside, since it is out: the next one here is another node, with another key."""
        for number in itertools.count(1):
            aside = self.path.with_name(f"{self.path.name}.out-{number}")
            if not aside.exists():
                break
        try:
            os.rename(self.path, aside)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be put aside: {error.strerror}") from error

    def ticket(self) -> str:
        """Where the node was last reachable; empty when it never was."""
        return _word(self.path / "ticket")

    def keep_ticket(self, ticket: str) -> None:
        """Note where the node can be reached."""
        write(self.path / "ticket", ticket.encode("ascii"))

    def claim(self, invite: bytes, peer: PeerId) -> PeerId:
        """Note, for good and before anybody is answered, that `peer` uses an invite; returns who has it.

        The file appears with its content or not at all, and only once, whoever else tries at the same time.
        """
        path = self.path / "redeemed" / invite.hex()
        if not path.exists():
            _private(path.parent)
            draft = _draft(path, peer.encode("ascii"))
            try:
                os.link(draft, path)
            except FileExistsError:
                pass  # somebody else was faster
            finally:
                draft.unlink(missing_ok=True)
            _sync_folder(path.parent)
        return PeerId(_word(path))

    def redeemed(self) -> dict[str, str]:
        """Who used which invite here, by its id in hexadecimal digits."""
        folder = self.path / "redeemed"
        return {path.name: _word(path) for path in sorted(folder.glob("[0-9a-f]" * 32))}


def default_home() -> Path:
    """$SHOAL_HOME, or the user's configuration folder."""
    if home := os.environ.get("SHOAL_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "shoal"


def write(path: Path, data: bytes) -> None:
    """Replace a file in one go, readable by its owner alone; raises UsageError where that cannot be."""
    _private(path.parent)
    try:
        replace_file(path, data, sync=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _draft(path: Path, data: bytes) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    return draft


def _private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows cannot; there the entry is durable when the call returns
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _word(path: Path) -> str:
    """A file of one word; what a spoilt one holds is the word of nothing."""
    return _read(path).decode("ascii", "replace").strip()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
