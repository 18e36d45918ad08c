"""Ports opened at the home router through UPnP or NAT-PMP, by libtorrent. Not yet tried with a real router."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import UsageError
from shoal.swarm.discovery.libtorrent_session import LibtorrentSession
from shoal.tasks import first_done
from shoal.transport.address import host_port, join_host_port

MAPPING_S = 4.0
"""How long to wait for the router; what it grants later is used at the next announcement."""

PROTOCOLS = {"tls": "tcp", "hello": "tcp", "iroh": "udp"}
"""What carries each scheme."""

Port = tuple[str, int]
"""Protocol ("tcp" or "udp") and number."""


class PortMapper:
    """Asks the router to lead ports here, and knows under which address and ports others reach them then."""

    def __init__(self, engine: LibtorrentSession, clock: Clock = SYSTEM_CLOCK) -> None:
        self._engine = engine
        self._clock = clock
        self._wanted: dict[int, Port] = {}
        self._granted: dict[Port, int] = {}
        self._changed = asyncio.Event()
        self.host = ""
        self.problem = "no router answered"

    async def map(self, addresses: Iterable[str]) -> None:
        """Map the port of each address, like tls://0.0.0.0:4433, and wait up to MAPPING_S until all are granted."""
        ports = dict.fromkeys(filter(None, map(_port, addresses)))
        session = self._engine.open()
        self._engine.on("portmap_alert", self._on_granted)
        self._engine.on("portmap_error_alert", self._on_error)
        self._engine.on("external_ip_alert", self._on_host)
        for protocol, port in ports:
            kind = getattr(self._engine.library.portmap_protocol, protocol)
            self._wanted |= dict.fromkeys(session.add_port_mapping(kind, port, port), (protocol, port))
        await first_done(self._until_granted(set(ports)), self._clock.sleep(MAPPING_S))

    async def _until_granted(self, ports: set[Port]) -> None:
        while not (self.host and self._granted.keys() >= ports):
            self._changed.clear()
            await self._changed.wait()

    def _on_granted(self, alert: Any) -> None:
        port = self._wanted.get(alert.mapping)
        if port is not None:
            self._granted[port] = alert.external_port
            self._changed.set()

    def _on_error(self, alert: Any) -> None:
        self.problem = alert.message()

    def _on_host(self, alert: Any) -> None:
        if ipaddress.ip_address(alert.external_address).version == 4:  # those protocols map IPv4 ports only
            self.host = alert.external_address
            self._changed.set()

    def outside_port(self, protocol: str, port: int) -> int:
        """The port under which others reach this one: the router's if it granted one, else the same."""
        return self._granted.get((protocol, port), port)

    def outside(self, addresses: Sequence[str]) -> tuple[str, ...]:
        """The addresses at the router that lead to these; none without a grant or a known outer address."""
        found: dict[str, None] = {}
        for address in addresses:
            port = _port(address)
            if self.host and port in self._granted:
                scheme = address.partition("://")[0]
                found[f"{scheme}://{join_host_port(self.host, self._granted[port])}"] = None
        return tuple(found)


def _port(address: str) -> Port | None:
    """The protocol and port of an address; None for one that is not of a socket here, such as a relay's."""
    scheme = address.partition("://")[0]
    try:
        return PROTOCOLS[scheme], host_port(address, scheme)[1]
    except (KeyError, UsageError):
        return None
