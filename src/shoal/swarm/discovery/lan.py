"""Members in the same local network, through mDNS (RFC 6762) and DNS-SD (RFC 6763).

A server registers one instance of `_shoal._tcp.local.`; its TXT record holds the node id, the model's fingerprint and
the addresses. Whatever the network says is a hint: who answers at an address must have the node's key.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import NetworkError, UsageError
from shoal.swarm.directory.records import MAX_ADDRESSES
from shoal.swarm.discovery.discovery import Contact, Presence
from shoal.tasks import OwnedTasks
from shoal.transport.address import host_port, is_ip, node_address, source_network
from shoal.types import PeerId

if TYPE_CHECKING:
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

SERVICE_TYPE = "_shoal._tcp.local."
BROWSE_S = 2.0
"""How long a search listens. Answers come within 20 to 120 ms (RFC 6762, section 6); a lost packet is asked for again
after one second."""

RESOLVE_S = 1.0
MAX_SERVICES = 64
"""Instances that are tried in one search, and those that are asked for at once what did not come with their names."""

MAX_NAMES = 1024
"""Instances looked at in one search: one machine may name any number."""

MAX_ADDRESS_CHARS = 128
_LABEL_CHARS = 32
"""Of the node id in the instance's name; a DNS label has at most 63 bytes."""


log = logging.getLogger("shoal.discovery")


class _Found(msgspec.Struct, frozen=True):
    """A TXT record's contents after every check."""

    contact: Contact
    fingerprint: str


class LanDiscovery:
    """mDNS on the given interfaces (IP addresses of this machine; none: all).

    `fingerprint` limits what is found to one model. Nothing is sent before `announce` or `find`. `choose` orders what is found,
    which anybody may have invented.
    """

    name = "LAN"

    def __init__(
        self,
        interfaces: tuple[str, ...] = (),
        fingerprint: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
        choose: random.Random | None = None,
    ) -> None:
        self._choose = choose or random.Random()
        self._interfaces = interfaces
        self._fingerprint = fingerprint
        self._clock = clock
        self._zeroconf: AsyncZeroconf | None = None
        self._opening = asyncio.Lock()
        self._info: ServiceInfo | None = None
        self._closed = False

    async def announce(self, presence: Presence) -> None:
        """Discovery: register, or update what is registered."""
        zeroconf = await self._open()
        info = service_info(presence)
        from zeroconf import Error

        try:
            if self._info is None:
                await (await zeroconf.async_register_service(info))
            elif self._info.properties != info.properties:
                await (await zeroconf.async_update_service(info))
        except (Error, OSError) as error:
            raise NetworkError(f"the LAN announcement failed: {str(error) or type(error).__name__}") from error
        self._info = info

    async def find(self) -> AsyncGenerator[Contact, None]:
        """Discovery: browse for BROWSE_S."""
        from zeroconf.asyncio import AsyncServiceBrowser

        zeroconf = await self._open()
        found = Finds(self._choose)
        async with OwnedTasks() as tasks:
            browse = _Browse(zeroconf, found, tasks)
            browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[browse.changed])
            tasks.start(self._end(found))
            try:
                while (item := await found.next()) is not None:
                    if self._fingerprint in (None, item.fingerprint):
                        yield item.contact
            finally:
                await browser.async_cancel()

    async def _end(self, found: Finds) -> None:
        await self._clock.sleep(BROWSE_S)
        found.end()

    async def _open(self) -> AsyncZeroconf:
        async with self._opening:
            if self._closed:
                raise UsageError("the LAN discovery is closed")
            if self._zeroconf is None:
                self._zeroconf = open_zeroconf(self._interfaces)
                await self._zeroconf.zeroconf.async_wait_for_start()
            return self._zeroconf

    async def close(self) -> None:
        """Discovery: say goodbye for what was announced."""
        self._closed = True
        async with self._opening:
            zeroconf, self._zeroconf = self._zeroconf, None
            if zeroconf is not None:
                try:
                    await zeroconf.async_unregister_all_services()
                finally:
                    await zeroconf.async_close()


class Finds:
    """What a search has found. Networks take turns, by the first address of each find: none crowds out the others."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._waiting: dict[str, list[_Found]] = {}
        self._turns: Counter[str] = Counter()
        self._given = 0
        self._ended = False
        self._came = asyncio.Event()

    def put_nowait(self, item: _Found) -> None:
        """One more."""
        self._waiting.setdefault(source_network(node_address(item.contact.addresses[0]).host), []).append(item)
        self._came.set()

    def end(self) -> None:
        """No more come; what is there can still be taken."""
        self._ended = True
        self._came.set()

    async def next(self) -> _Found | None:
        """One of a network that has had the fewest turns, by chance; None at the end, or when there were MAX_SERVICES."""
        while not self._waiting and not self._ended:
            self._came.clear()
            await self._came.wait()
        if not self._waiting or self._given == MAX_SERVICES:
            return None
        self._given += 1
        fewest = min(self._turns[network] for network in self._waiting)
        network = self._choose.choice([one for one in self._waiting if self._turns[one] == fewest])
        self._turns[network] += 1
        items = self._waiting[network]
        item = items.pop(self._choose.randrange(len(items)))
        if not items:
            del self._waiting[network]
        return item


class _Browse:
    """Instances that a browser names, resolved in tasks of their own. Most come with all that is asked of them."""

    def __init__(self, zeroconf: AsyncZeroconf, found: Finds, tasks: OwnedTasks) -> None:
        self._zeroconf = zeroconf
        self._found = found
        self._names: set[str] = set()
        self._asking = 0
        self._tasks = tasks

    def changed(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        """zeroconf's handler, called in the event loop; its arguments are passed by these names."""
        if name not in self._names and len(self._names) < MAX_NAMES and state_change.name != "Removed":
            self._names.add(name)
            self._tasks.start(self._resolve(name))

    async def _resolve(self, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            item = parse_txt(info.properties) if await self._answers(info) else None
        except Exception as error:  # a stranger chooses the name; none of them ends the search
            log.debug("the name %r is not resolved: %s", name, error)
            return
        if item is not None:
            self._found.put_nowait(item)

    async def _answers(self, info: AsyncServiceInfo) -> bool:
        if info.load_from_cache(self._zeroconf.zeroconf):
            return True
        if self._asking == MAX_SERVICES:
            return False
        self._asking += 1
        try:
            return await info.async_request(self._zeroconf.zeroconf, RESOLVE_S * 1000)
        finally:
            self._asking -= 1


def open_zeroconf(interfaces: tuple[str, ...]) -> AsyncZeroconf:
    """A zeroconf instance on these interfaces; raises UsageError when the package or an interface is missing."""
    try:
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncZeroconf
    except ImportError as error:
        raise UsageError(f"LAN discovery needs the package `zeroconf`, which does not load: {error}") from error
    try:
        return AsyncZeroconf(interfaces=list(interfaces) if interfaces else InterfaceChoice.All)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"cannot use mDNS on {', '.join(interfaces) or 'this machine'}: {error}") from error


def service_info(presence: Presence) -> ServiceInfo:
    """What a member registers: its first address' port, the hosts of all addresses, and TXT keys id, fp, a0, a1, …"""
    from zeroconf import ServiceInfo

    label = presence.peer[:_LABEL_CHARS]
    targets = [host_port(address, address.partition("://")[0]) for address in presence.addresses[:MAX_ADDRESSES]]
    properties = {"id": presence.peer, "fp": presence.fingerprint}
    properties |= {f"a{index}": address for index, address in enumerate(presence.addresses[:MAX_ADDRESSES])}
    return ServiceInfo(
        SERVICE_TYPE,
        f"{label}.{SERVICE_TYPE}",
        port=targets[0][1] if targets else 0,
        properties=properties,
        server=f"{label}.local.",
        parsed_addresses=sorted({host for host, _ in targets if is_ip(host)}),
    )


def parse_txt(properties: Mapping[bytes, bytes | None]) -> _Found | None:
    """The contact in a TXT record; None for anything that is not one. Fields have fixed names and bounded values."""
    texts = {key: _text(properties.get(key.encode())) for key in ("id", "fp", *(f"a{i}" for i in range(MAX_ADDRESSES)))}
    peer, fingerprint = texts.pop("id"), texts.pop("fp")
    addresses = tuple(address for address in texts.values() if _is_address(address))
    if not _is_hex(peer, 64) or not _is_hex(fingerprint, 32) or not addresses:
        return None
    return _Found(Contact(PeerId(peer), addresses), fingerprint)


def _text(value: bytes | None) -> str:
    return value.decode("ascii", "replace") if value is not None and len(value) <= MAX_ADDRESS_CHARS else ""


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and set(text) <= set("0123456789abcdef")


def _is_address(text: str) -> bool:
    """Whether this is scheme://IP:PORT: strangers do not make this side look up names."""
    try:
        address = node_address(text)
    except UsageError:
        return False
    return is_ip(address.host) and address.port > 0 and not address.relay
