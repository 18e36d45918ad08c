"""`shoal drain`: who may order a server to leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cli.drain import drain
from shoal.errors import DialError, TicketError, UsageError
from shoal.server.serve_options import ServeOptions
from shoal.server.server_place import ServerPlace
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity

TICKET = str(Ticket(Identity.generate().peer, ("tls://127.0.0.1:1",)))


def test_a_key_is_needed(tmp_path: Path) -> None:
    """The server's own, as a file or by its private swarm; a file that is not there is not made."""
    with pytest.raises(UsageError, match="--identity"):
        drain(TICKET)
    with pytest.raises(UsageError, match="no key file"):
        drain(TICKET, tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_this_machine_keeps_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a server which was started without a key file, whatever else is kept there."""
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    for model in ("one", "another"):
        with ServerPlace(ServeOptions(model=model)) as place:
            key = Identity.load(place.path / "node.key")
    (place.path.parent.parent / "broken" / "1").mkdir(parents=True)
    (place.path.parent.parent / "broken" / "1" / "node.key").write_text("no key")
    with pytest.raises(DialError, match=key.peer[:8]):  # it is asked, and does not run
        drain(str(Ticket(key.peer, ("tls://127.0.0.1:1",))), transport="tls")
    with pytest.raises(UsageError, match="this machine keeps no key"):
        drain(TICKET)


def test_the_key_is_that_of_the_ticket(tmp_path: Path) -> None:
    """Another one is named before anything is dialled, and so is a text that is no ticket."""
    key = Identity.load(tmp_path / "key")
    with pytest.raises(UsageError, match=f"the key is that of {key.peer[:8]}"):
        drain(TICKET, tmp_path / "key")
    with pytest.raises(TicketError):
        drain("nonsense", tmp_path / "key")


def test_a_private_swarm_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name stands for nothing on this machine."""
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no private swarm 'home' here"):
        drain(TICKET, swarm="home")
