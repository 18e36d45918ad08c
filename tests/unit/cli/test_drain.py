"""`shoal drain`: who may order a server to leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cli.drain import drain
from shoal.errors import TicketError, UsageError
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
