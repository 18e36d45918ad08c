"""Addresses as text: scheme://host:port."""

from __future__ import annotations

import ipaddress
import socket

from shoal.errors import UsageError


def host_port(text: str, scheme: str | None = None) -> tuple[str, int]:
    """`"tls://[::1]:4433"` with scheme "tls", or `"127.0.0.1:0"` without → host, port. Raises UsageError."""
    rest = text
    if scheme is not None:
        found, separator, rest = text.partition("://")
        if not separator or found != scheme:
            raise UsageError(f"{text!r} is not a {scheme} address")
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 65_536):
        raise UsageError(f"an address is written HOST:PORT, not {text!r}")
    return host, int(port)


def join_host_port(host: str, port: int) -> str:
    """The inverse, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_hosts(bound: str) -> tuple[str, ...]:
    """The hosts under which a socket bound to `bound` can be reached, as they are written in addresses.

    A wildcard stands for this machine's own addresses as its resolver knows them, loopback last.
    """
    try:
        address = ipaddress.ip_address(bound)
    except ValueError:
        return (bound,)
    if not address.is_unspecified:
        return (f"[{bound}]" if address.version == 6 else bound,)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, family)}
    except OSError:
        found = set()
    hosts = sorted(found, key=lambda host: (ipaddress.ip_address(host.partition("%")[0]).is_loopback, host))
    hosts = hosts or [str(ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1"))]
    return tuple(f"[{host}]" if ":" in host else host for host in hosts[:4])
