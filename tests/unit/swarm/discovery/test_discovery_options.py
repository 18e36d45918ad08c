"""What options lead to: above all, nothing public unless it was asked for."""

from __future__ import annotations

import pytest

from shoal.errors import UsageError
from shoal.swarm.discovery import libtorrent_session as torrent
from shoal.swarm.discovery.dht import DhtDiscovery
from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
from shoal.swarm.discovery.lan import LanDiscovery
from shoal.swarm.discovery.libtorrent_session import engine_settings
from shoal.transport.iroh_transport import PUBLIC_RELAY, relay_mode

NODE = ("127.0.0.1:1",)


def test_nothing_by_default() -> None:
    """Without options there are no discoveries and no relay."""
    options = DiscoveryOptions()
    assert not options.wanted
    assert not options.contacts_strangers
    assert options.iroh_relay is None
    assert Discoveries(options).all == ()


def test_a_dht_of_ones_own_contacts_nothing_public() -> None:
    """With --dht-node no bootstrap host, no router and no relay are contacted, unless a relay is named."""
    options = DiscoveryOptions(public=True, dht_nodes=NODE, interface="127.0.0.1", swarm_name="ours")
    assert not options.contacts_strangers
    assert options.iroh_relay is None
    settings = engine_settings(options.engine_options())
    assert settings["dht_bootstrap_nodes"] == ""
    assert not settings["enable_upnp"]
    discoveries = Discoveries(options)
    assert [type(one) for one in discoveries.all] == [DhtDiscovery]
    assert discoveries.mapper is None
    named = DiscoveryOptions(public=True, dht_nodes=NODE, relay="https://relay.example")
    assert named.iroh_relay == "https://relay.example"


def test_public_mode() -> None:
    """Asked for, the public hosts are named; the relay can be one's own or none."""
    options = DiscoveryOptions(public=True)
    assert options.contacts_strangers
    assert options.iroh_relay == PUBLIC_RELAY
    assert engine_settings(options.engine_options())["dht_bootstrap_nodes"]
    assert DiscoveryOptions(public=True, relay="none").iroh_relay is None
    assert DiscoveryOptions(public=True, relay="https://relay.example").iroh_relay == "https://relay.example"


def test_the_lan_is_that_of_the_interface() -> None:
    """A client of one interface asks there only; both discoveries may be had together."""
    assert DiscoveryOptions(lan=True, interface="127.0.0.1").bind == "127.0.0.1:0"
    both = Discoveries(DiscoveryOptions(lan=True, public=True, dht_nodes=NODE), "ab" * 16)
    assert [type(one) for one in both.all] == [LanDiscovery, DhtDiscovery]


@pytest.mark.parametrize(
    "options",
    [
        {"dht_nodes": NODE},
        {"public": True, "dht_nodes": ("nonsense",)},
        {"public": True, "interface": "127.0.0.1"},
        {"public": True, "interface": "somewhere.example"},
        {"public": True, "swarm_name": ""},
        {"swarm_name": "lab"},
        {"relay": "relay.example"},
        {"hello_port": 70_000},
        {"dht_port": -1},
    ],
)
def test_mistakes(options: dict[str, object]) -> None:
    """Options that cannot work are refused before anything happens."""
    with pytest.raises(UsageError):
        DiscoveryOptions(**options)  # type: ignore[arg-type]


def test_a_public_swarm_needs_a_name() -> None:
    """Neither a name nor a model: there is nothing to look up."""
    with pytest.raises(UsageError, match="--swarm-name"):
        Discoveries(DiscoveryOptions(public=True, dht_nodes=NODE))


def test_without_libtorrent_the_dht_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notice says so, and the LAN works as before."""

    def missing() -> None:
        raise UsageError("the DHT is off: no package")

    monkeypatch.setattr(torrent, "load_libtorrent", missing)
    discoveries = Discoveries(DiscoveryOptions(public=True, lan=True, dht_nodes=NODE), "ab" * 16)
    assert [type(one) for one in discoveries.all] == [LanDiscovery]
    assert discoveries.notices == ["the DHT is off: no package"]


def test_relay_modes() -> None:
    """iroh gets no relay, one's own, or its public ones, as was asked."""

    class Modes:
        """Stands for iroh's RelayMode."""

        disabled = staticmethod(lambda: "disabled")
        default_mode = staticmethod(lambda: "public")
        custom_from_urls = staticmethod(lambda urls: urls)

    assert relay_mode(Modes, None) == "disabled"
    assert relay_mode(Modes, PUBLIC_RELAY) == "public"
    assert relay_mode(Modes, "https://relay.example") == ["https://relay.example"]
