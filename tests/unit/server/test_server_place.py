"""What a server keeps from one start to the next."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import UsageError
from shoal.server.serve_options import ServeOptions
from shoal.server.server_place import ServerPlace, state_home
from shoal.swarm.identity import Identity
from shoal.swarm.membership.storage import PrivateSwarm
from shoal.types import Span


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own."""
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def options(**given: Any) -> ServeOptions:
    """A server's options."""
    return ServeOptions(**{"model": "some/model", **given})


def started(asked: ServeOptions, port: int = 0) -> ServeOptions:
    """What a server gets that then listens on this port, and ends."""
    with ServerPlace(asked) as place:
        got = place.options
        Identity.load(got.identity or Path("none"))
        place.keep_port((f"tls://127.0.0.1:{port or 4433}", "iroh://127.0.0.1:1"))
    return got


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_key_and_port_are_kept() -> None:
    """So that the ticket is good after a restart; a port that is taken meanwhile is given up, the key is not."""
    port = free_port()
    first, second = started(options(), port), started(options(), port)
    assert first.listen == "127.0.0.1:0"
    assert second.listen == f"127.0.0.1:{port}"
    assert first.identity == second.identity
    with socket.create_server(("127.0.0.1", port)):
        assert started(options()).listen == "127.0.0.1:0"


def test_what_is_given_counts() -> None:
    """A port, and a key file."""
    started(options())
    own = Path("own.key").resolve()
    with ServerPlace(options(listen="127.0.0.1:7", identity=own)) as place:
        assert (place.options.listen, place.options.identity) == ("127.0.0.1:7", own)


def test_each_model_and_span_has_its_own() -> None:
    """Two halves of a model on one machine are two servers, each with its ticket."""
    asked = (options(), options(model="other/model"), options(blocks=Span(0, 3)), options(blocks=Span(3, 6)))
    assert len({started(one).identity for one in asked}) == 4


def test_two_at_once_have_numbers() -> None:
    """A third takes the place of one that has ended."""
    with ServerPlace(options()) as first:
        with ServerPlace(options()) as second:
            assert first.options.identity != second.options.identity
        with ServerPlace(options()) as third:
            assert third.options.identity == second.options.identity


@pytest.mark.parametrize("own", [{"identity": Path("/tmp/some.key")}, {"private": PrivateSwarm(name="home")}])
def test_one_key_is_one_server(own: dict[str, Any]) -> None:
    """Others would take two for one, and find the healthy one only by chance."""
    with ServerPlace(options(**own)):
        with pytest.raises(UsageError, match="runs on this machine already"):
            with ServerPlace(options(**own)):
                pass
    with ServerPlace(options(**own)):
        pass


def test_where_nothing_can_be_kept(home: Path) -> None:
    """The error says what to do."""
    home.write_text("a file")
    with pytest.raises(UsageError, match="--temporary"):
        with ServerPlace(options()):
            pass


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """SHOAL_HOME goes before the user's folder for such things."""
    monkeypatch.delenv("SHOAL_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_home() == Path("/state/shoal")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_home() == Path.home() / ".local" / "state" / "shoal"
