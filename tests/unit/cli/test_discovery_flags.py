"""What is said, and asked, before a command contacts hosts that others run."""

from __future__ import annotations

import io

import pytest
import typer

from shoal.cli import discovery_flags as discovery
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.swarm.discovery.libtorrent_session import PUBLIC_BOOTSTRAP


class Terminal(io.StringIO):
    """Standard input at which somebody sits and types this."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_everything_that_becomes_visible_is_said() -> None:
    """The hosts, what a server announces, and that others may use it; a client is told what it shows."""
    serving = "\n".join(discovery.disclosure(DiscoveryOptions(public=True), serving=True))
    for words in (PUBLIC_BOOTSTRAP, "IP address", "your router", "relays", "record", "compute"):
        assert words in serving
    asking = "\n".join(discovery.disclosure(DiscoveryOptions(public=True, relay="none"), serving=False))
    assert "which swarm" in asking
    assert "relay" not in asking
    assert "your router" not in asking


def test_on_a_terminal_it_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No ends the command, yes goes on, --yes does not ask, and a DHT of one's own is nobody else's business."""
    public = DiscoveryOptions(public=True)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    with pytest.raises(typer.Abort):
        discovery.agree(public, False, serving=True)
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    discovery.agree(public, False, serving=True)
    monkeypatch.setattr("sys.stdin", Terminal(""))
    discovery.agree(public, True, serving=True)
    discovery.agree(DiscoveryOptions(public=True, dht_nodes=("127.0.0.1:1",)), False, serving=True)
    discovery.agree(DiscoveryOptions(lan=True), False, serving=True)
