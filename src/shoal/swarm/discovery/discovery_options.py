"""How a user asks for discovery, and the discoveries that come of it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Annotated

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import UsageError
from shoal.options import Options, option
from shoal.swarm.directory.directory import Directory
from shoal.swarm.discovery.dht import DhtDiscovery, swarm_key
from shoal.swarm.discovery.discovery import Discovery
from shoal.swarm.discovery.finder import Finder
from shoal.swarm.discovery.lan import LanDiscovery
from shoal.swarm.discovery.libtorrent_session import LibtorrentOptions, LibtorrentSession
from shoal.swarm.discovery.port_mapper import PortMapper
from shoal.transport.address import host_port, join_host_port
from shoal.transport.dialler import Dialler
from shoal.transport.iroh_transport import PUBLIC_RELAY
from shoal.types import PeerId

NO_RELAY = "none"


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


MAX_PORT = 65_535


class DiscoveryOptions(Options, frozen=True, kw_only=True):
    """How a swarm is found without a ticket. Nothing is announced or contacted when neither `lan` nor `public` is set.

    `interface` is this machine's IP address for mDNS, DHT and hello; 0.0.0.0 means all. With `dht_nodes` of one's own
    nothing public is contacted: no bootstrap hosts, no router, and relays only if `relay` names one.
    """

    lan: Annotated[bool, option("Find members in the local network (mDNS).", "Swarm", flag="--lan")] = False
    public: Annotated[bool, option("Find members anywhere (BitTorrent DHT); asks first.", "Swarm", flag="--public")] = (
        False
    )
    swarm_name: Annotated[
        str | None, option("With --public: the swarm's name; default: the model's fingerprint.", "Swarm")
    ] = None
    dht_nodes: Annotated[
        tuple[str, ...],
        option(
            "HOST:PORT of a DHT of your own, instead of the public one.",
            "Swarm",
            flag="--dht-node",
            parse=_texts,
            repeated=True,
        ),
    ] = ()
    relay: Annotated[str | None, option("iroh relay to use, a URL, or none.", "Network")] = None
    interface: Annotated[str, option("Address of this machine that discovery uses; default: all.", "Network")] = (
        "0.0.0.0"
    )
    dht_port: Annotated[int, option("UDP port of the DHT node; 0: a free one.", "Network", least=0, most=MAX_PORT)] = 0
    hello_port: Annotated[
        int, option("TCP port that tells who this is; 0: a free one.", "Network", least=0, most=MAX_PORT)
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for node in self.dht_nodes:
            host_port(node)
        if self.dht_nodes and not self.public:
            raise UsageError("dht_nodes goes with public=True, or --public", field="dht_nodes")
        if self.swarm_name is not None:
            swarm_key(self.swarm_name)
            if not self.public:
                raise UsageError("swarm_name goes with public=True, or --public", field="swarm_name")
        if self.relay not in (None, NO_RELAY) and not str(self.relay).startswith(("http://", "https://")):
            raise UsageError(f"relay cannot be {self.relay!r}: it is an http(s) URL or {NO_RELAY}", field="relay")
        if self._is_loopback() and self.public and not self.dht_nodes:
            raise UsageError(
                "127.0.0.1 is reached from this machine only: with public listen on 0.0.0.0:PORT", field="public"
            )

    def _is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.interface).is_loopback
        except ValueError as error:
            raise UsageError(f"discovery needs a numeric address to listen on, not {self.interface!r}") from error

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return self.lan or self.public

    @property
    def contacts_strangers(self) -> bool:
        """Whether hosts that others run, and that the user did not name, are contacted."""
        return self.public and not self.dht_nodes

    @property
    def iroh_relay(self) -> str | None:
        """The relay for iroh: the one named, the public ones in the public swarm, or none."""
        if self.relay is not None:
            return None if self.relay == NO_RELAY else self.relay
        return PUBLIC_RELAY if self.contacts_strangers else None

    @property
    def bind(self) -> str:
        """HOST:PORT for a client's outgoing sockets."""
        return join_host_port(self.interface, 0)

    def engine_options(self) -> LibtorrentOptions:
        """What libtorrent gets."""
        return LibtorrentOptions(
            interface=self.interface,
            port=self.dht_port,
            nodes=self.dht_nodes,
            public=self.contacts_strangers,
            map_ports=self.contacts_strangers,
        )


class Discoveries:
    """The discoveries of one node; `notices` tell what was asked for and cannot be had."""

    def __init__(self, options: DiscoveryOptions, fingerprint: str | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.options = options
        self._fingerprint = fingerprint
        self._clock = clock
        self.notices: list[str] = []
        self.mapper: PortMapper | None = None
        found: list[Discovery] = []
        if options.lan:
            interfaces = () if ipaddress.ip_address(options.interface).is_unspecified else (options.interface,)
            found.append(LanDiscovery(interfaces, fingerprint, clock))
        name = options.swarm_name or fingerprint
        if options.public and name is None:
            raise UsageError("--public needs to know which swarm: give --swarm-name, or --model")
        engine = self._engine() if options.public else None
        if engine is not None and name is not None:
            found.append(DhtDiscovery(engine, name, clock=clock))
            self.mapper = PortMapper(engine, clock) if engine.options.map_ports else None
        self.all = tuple(found)

    def _engine(self) -> LibtorrentSession | None:
        """libtorrent, where there is one: it has no wheels for every Python, and all else works without."""
        try:
            return LibtorrentSession(self.options.engine_options())
        except UsageError as error:
            self.notices.append(str(error))
            return None

    def finder(self, directory: Directory, dialler: Dialler, me: PeerId | None = None) -> Finder:
        """What meets the members that these discoveries point to."""
        return Finder(directory, dialler, self.all, self._fingerprint, me, self._clock)

    async def close(self) -> None:
        """Withdraw what was announced. Closing twice is harmless."""
        for discovery in self.all:
            await discovery.close()
