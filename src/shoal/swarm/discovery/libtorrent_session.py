"""libtorrent as an engine for two things only: the Mainline DHT and port mapping. No torrent is ever added to it.

Its alerts wake the event loop through a socket pair that libtorrent writes to from C++, so that none of its threads
ever calls into Python.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.errors import UsageError
from shoal.tasks import BackgroundTask
from shoal.transport.address import host_port, join_host_port

PUBLIC_BOOTSTRAP = "dht.libtorrent.org:25401,router.bittorrent.com:6881"
"""Where a node without nodes of its own enters the Mainline DHT; contacted in public mode only."""

log = logging.getLogger("shoal.discovery")

AlertHandler = Callable[[Any], None]
"""Gets an alert that is valid during the call only."""


class LibtorrentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`interface` is an IP address of this machine, `nodes` are DHT nodes as HOST:PORT.

    Without nodes the public bootstrap hosts are asked, if `public`. `map_ports` lets it talk to the router.
    """

    interface: str
    port: int = 0
    nodes: tuple[str, ...] = ()
    public: bool = False
    map_ports: bool = False


def engine_settings(options: LibtorrentOptions) -> dict[str, Any]:
    """libtorrent's settings. They name a host beyond `options.nodes` only in public mode without nodes of one's own.

    Raises UsageError when there is no node to begin with.
    """
    if not options.nodes and not options.public:
        raise UsageError("a DHT needs nodes to begin with: give --dht-node, or --public for the public one")
    return {
        "listen_interfaces": join_host_port(options.interface, options.port),
        # Other nodes were told this port: not the next one when it is taken, nor any other.
        "max_retry_port_bind": 0,
        "listen_system_port_fallback": False,
        "enable_dht": True,
        "dht_bootstrap_nodes": "" if options.nodes else PUBLIC_BOOTSTRAP,
        "enable_upnp": options.map_ports,
        "enable_natpmp": options.map_ports,
        "enable_lsd": False,
        "enable_incoming_tcp": False,
        "enable_outgoing_tcp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "webtorrent_stun_server": "",
        **(_OWN_DHT if options.nodes else {}),
    }


_OWN_DHT = {
    # These guard the public DHT against nodes that share a network, which one's own nodes do.
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_ignore_dark_internet": False,
    "dht_prefer_verified_node_ids": False,
    # In a small DHT every node is near every key and gets every question. The defaults, 8 kB/s of answers and a ban of
    # five minutes at more than 5 packets a second, then lose members (docs/decisions/0006-discovery.md).
    "dht_upload_rate_limit": 1_000_000,
    "dht_block_ratelimit": 1_000,
}


def load_libtorrent() -> Any:
    """The libtorrent package. Raises UsageError where it is not installed or does not load."""
    try:
        return importlib.import_module("libtorrent")
    except (ImportError, OSError) as error:
        raise UsageError(f"the DHT is off: the package `libtorrent` does not load ({error})") from error


class LibtorrentSession:
    """One libtorrent session. Nothing happens before `open`. `problem` says why it has no socket, if it has none."""

    def __init__(self, options: LibtorrentOptions) -> None:
        self.options = options
        self.library = load_libtorrent()
        self._settings = engine_settings(options)
        self._handlers: defaultdict[str, list[AlertHandler]] = defaultdict(list)
        self._session: Any = None
        self._reader: BackgroundTask | None = None
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._closed = False
        self.problem = ""
        self.on("listen_failed_alert", self._on_listen_failed)

    def open(self) -> Any:
        """The libtorrent session, started by the first call in a running loop. Raises UsageError when it cannot be."""
        if self._closed:
            raise UsageError("the DHT node is closed")
        if self._session is None:
            categories = self.library.alert.category_t
            wanted = ("dht_operation", "port_mapping", "status", "error")
            mask = sum(int(getattr(categories, f"{name}_notification")) for name in wanted)
            try:
                self._session = self.library.session({**self._settings, "alert_mask": mask})
                for node in self.options.nodes:
                    self._session.add_dht_node(host_port(node))
            except (RuntimeError, KeyError, ValueError) as error:
                raise UsageError(f"libtorrent does not start: {error}") from error
            self._sockets = woken, waking = socket.socketpair()
            woken.setblocking(False)
            waking.setblocking(False)
            self._session.set_alert_fd(waking.fileno())
            self._reader = BackgroundTask("reading libtorrent's alerts", self._read_alerts(woken), log)
        return self._session

    def on(self, alert: str, handler: AlertHandler) -> None:
        """Call `handler` for every alert of the class with this name."""
        self._handlers[alert].append(handler)

    def off(self, alert: str, handler: AlertHandler) -> None:
        """No more."""
        self._handlers[alert].remove(handler)

    def _on_listen_failed(self, alert: Any) -> None:
        where = join_host_port(self.options.interface, self.options.port)
        self.problem = f"the DHT node cannot use {where}: {alert.error.message()}"

    async def _read_alerts(self, woken: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for alert in self._session.pop_alerts():
                for handler in tuple(self._handlers[type(alert).__name__]):
                    handler(alert)
            await loop.sock_recv(woken, 4096)

    async def close(self) -> None:
        """End the session; mappings are taken back. Closing twice is harmless."""
        self._closed = True
        if self._reader is not None:
            await self._reader.close()
            self._reader = None
        ending = [self._session]
        self._session = None
        await asyncio.to_thread(ending.clear)  # its destructor waits for libtorrent's threads
        for one in self._sockets or ():
            one.close()
