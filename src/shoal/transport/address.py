"""Addresses as text: scheme://host:port."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Annotated, NamedTuple

from msgspec import Meta

from shoal.errors import UsageError

MAX_ADDRESS_CHARS = 128

ADDRESS_FORM = (
    r"^(?P<scheme>[a-z][a-z0-9]{0,15})://(?P<relay>https?://)?"
    r"(?:\[(?P<ipv6>[0-9a-f:.]{2,45})\]|(?P<host>[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}))(?::(?P<port>[0-9]{1,5}))?/?\Z"
)
"""scheme://HOST:PORT, scheme://[IPV6]:PORT, or a relay's scheme://https://HOST/: brackets stand around IPv6 alone."""

Address = Annotated[str, Meta(max_length=MAX_ADDRESS_CHARS, pattern=ADDRESS_FORM)]

IP_SCHEMES = ("tls", "iroh")
"""Schemes whose addresses are an IP address and a port, unless they are a relay's."""

MAX_HOSTS = 4
"""Addresses told to others for one socket: a record has to stay small."""


def host_port(text: str, scheme: str | None = None) -> tuple[str, int]:
    """`"tls://[::1]:4433"` with scheme "tls", or `"127.0.0.1:0"` without → host, port. Raises UsageError."""
    rest = text
    if scheme is not None:
        found, separator, rest = text.partition("://")
        if not separator or found != scheme:
            raise UsageError(f"{text!r} is not a {scheme} address")
    host, colon, port = rest.rpartition(":")
    if _is_ipv6(rest) or _is_ipv6(host):
        raise UsageError(f"an IPv6 address stands in brackets, as in [::1]:4433, not {text!r}")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (
        colon and host and (bracketed or ":" not in host) and port.isascii() and port.isdecimal() and int(port) < 65_536
    ):
        raise UsageError(f"an address is written HOST:PORT, not {text!r}")
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def numeric(text: str) -> str:
    """HOST:PORT with the IP address that a host's name stands for; IPv4 where it has both. Raises UsageError for none.

    Blocks while the name is looked up; one that is numeric already is not.
    """
    host, port = host_port(text)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot listen on {text}: {host!r} stands for no address ({error})") from error
        host = str(min(found, key=lambda info: info[0] != socket.AF_INET)[4][0])
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_multicast or address == ipaddress.IPv4Address(0xFFFFFFFF):
        raise UsageError(f"cannot listen on {text}: {host} is not the address of one machine")
    return join_host_port(host, port)


class NodeAddress(NamedTuple):
    """An address that a node tells of itself; `relay` if it is a relay's. `port` is 0 where none is given."""

    scheme: str
    host: str
    port: int
    relay: bool


def node_address(text: str) -> NodeAddress:
    """A node's own address, as it stands in its record: numeric for the transports that are known here.

    Raises UsageError for anything that no dial could use. Addresses of other schemes need only have the form.
    """
    found = re.search(ADDRESS_FORM, text) if len(text) <= MAX_ADDRESS_CHARS else None
    if found is None:
        raise UsageError(f"{text[:MAX_ADDRESS_CHARS]!r} is not an address")
    address = NodeAddress(
        found["scheme"], found["ipv6"] or found["host"], int(found["port"] or 0), found["relay"] is not None
    )
    if address.relay and address.scheme != "iroh":
        raise UsageError(f"{text!r} is a relay's, and {address.scheme} has none")
    if address.port > 65_535 or (address.scheme in IP_SCHEMES and not address.relay and not _is_numeric(address)):
        raise UsageError(f"{text!r} is not an IP address and a port")
    return address


def _is_numeric(address: NodeAddress) -> bool:
    return is_ip(address.host) and address.port > 0


def is_ip(host: str) -> bool:
    """Whether a host is an IP address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def source_network(host: str) -> str:
    """What counts as one stranger's: an IPv4 address, or an IPv6 /64, as whole ones are given out. Empty for no address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        return str(inner or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def join_host_port(host: str, port: int) -> str:
    """The inverse, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_hosts(bound: str) -> tuple[str, ...]:
    """The hosts under which a socket bound to `bound` can be reached, as they are written in addresses.

    A wildcard stands for this machine's addresses of its family: the one that leads out, then those of its host name.
    Loopback is named only when there is no other, since elsewhere it leads somewhere else.
    """
    try:
        address = ipaddress.ip_address(bound)
    except ValueError:
        return (bound,)
    if not address.is_unspecified:
        return (f"[{bound}]" if address.version == 6 else bound,)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    found = [ipaddress.ip_address(host) for host in dict.fromkeys([*_leading_out(family), *_of_host_name(family)])]
    useful = [host for host in found if not (host.is_loopback or host.is_link_local or host.is_unspecified)]
    hosts = useful[:MAX_HOSTS] or [ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")]
    return tuple(f"[{host}]" if host.version == 6 else str(host) for host in hosts)


def _leading_out(family: socket.AddressFamily) -> list[str]:
    """The address that packets to the internet would carry; connecting a UDP socket sends none."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1", 9))  # documentation only
        except OSError:
            return []
        return [str(probe.getsockname()[0])]


def _of_host_name(family: socket.AddressFamily) -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, family, socket.SOCK_DGRAM)
    except OSError:
        return []
    return [str(info[4][0]).partition("%")[0] for info in found]
