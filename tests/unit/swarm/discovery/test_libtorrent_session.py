"""What libtorrent is told, and which hosts its settings may and may not name."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.errors import UsageError
from shoal.swarm.discovery import libtorrent_session as torrent
from shoal.swarm.discovery.libtorrent_session import (
    PUBLIC_BOOTSTRAP,
    LibtorrentOptions,
    LibtorrentSession,
    engine_settings,
)

libtorrent = pytest.importorskip("libtorrent")


def strings(settings: dict[str, Any]) -> str:
    """All text in settings."""
    return " ".join(value for value in settings.values() if isinstance(value, str))


def test_public_hosts_are_named_in_public_mode_only() -> None:
    """With nodes of one's own, in public mode or not, no host is named; without any the public ones need `public`."""
    for public in (False, True):
        settings = engine_settings(LibtorrentOptions(interface="127.0.0.1", nodes=("127.0.0.2:1",), public=public))
        assert settings["dht_bootstrap_nodes"] == ""
        ipaddress.ip_address(strings(settings).strip().rpartition(":")[0])
        assert not settings["enable_upnp"]
        assert not settings["enable_natpmp"]
        assert not settings["enable_lsd"]
    with pytest.raises(UsageError, match="dht-node"):
        engine_settings(LibtorrentOptions(interface="127.0.0.1"))
    public_settings = engine_settings(LibtorrentOptions(interface="0.0.0.0", public=True))
    assert public_settings["dht_bootstrap_nodes"] == PUBLIC_BOOTSTRAP
    assert not [name for name in public_settings if "restrict" in name or "limit" in name]  # its guards stay


def test_no_other_default_of_libtorrent_names_a_host() -> None:
    """Text settings that we leave alone name no host; a new libtorrent that adds one is noticed here."""
    merged = {
        **libtorrent.default_settings(),
        **engine_settings(LibtorrentOptions(interface="127.0.0.1", nodes=("127.0.0.2:1",))),
    }
    known = ("user_agent", "peer_fingerprint", "handshake_client_version", "listen_interfaces")
    rest = {name: value for name, value in merged.items() if isinstance(value, str) and value and name not in known}
    assert rest == {}


def test_without_libtorrent_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no wheel, the error names the package."""

    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(torrent.importlib, "import_module", missing)
    with pytest.raises(UsageError, match="libtorrent"):
        LibtorrentSession(LibtorrentOptions(interface="127.0.0.1", nodes=("127.0.0.2:1",)))


async def test_engines_that_cannot_start_say_so() -> None:
    """A node that is no address is named; closing what was never opened is harmless."""
    engine = LibtorrentSession(LibtorrentOptions(interface="127.0.0.1", nodes=("nonsense",)))
    with pytest.raises(UsageError, match="nonsense"):
        engine.open()
    await engine.close()
    await LibtorrentSession(LibtorrentOptions(interface="127.0.0.1", nodes=("127.0.0.1:1",))).close()


async def test_a_socket_that_cannot_be_had_is_the_sessions_problem() -> None:
    """The address and the reason are named."""
    session = LibtorrentSession(LibtorrentOptions(interface="127.0.0.1", port=7, nodes=("127.0.0.2:1",)))
    assert session.problem == ""
    failed = SimpleNamespace(error=SimpleNamespace(message=lambda: "Address in use"))
    session._on_listen_failed(failed)
    assert session.problem == "the DHT node cannot use 127.0.0.1:7: Address in use"
    await session.close()
    with pytest.raises(UsageError, match="closed"):
        session.open()
