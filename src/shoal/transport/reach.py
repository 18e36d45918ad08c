"""Which of the addresses in a record a server dials because others say so.

A record is its node's word. Without this rule its addresses could make a server knock at its own machine's doors, or at those
of its network, for anybody who asks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from shoal.errors import UsageError
from shoal.transport.address import NodeAddress, is_ip, node_address

_NOWHERE = ("multicast", "unspecified")
_PRIVATE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
"""Networks of their owners (RFC 1918, RFC 6598, RFC 4193)."""
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96")))
"""IPv6 addresses that a gateway, or a stack, may turn into the IPv4 address in their last 32 bits."""

_FAMILY_LABELS = 3
"""Relays of one operator are told by what follows the first label of their host, if it has at least so many labels."""


def dialled_for_others(addresses: Iterable[str], own: Iterable[str]) -> tuple[str, ...]:
    """The addresses that a server dials for others whose own addresses are `own`.

    Addresses that lead nowhere in particular are never dialled. Loopback, link-local and private ones are dialled by a server
    that itself has such an address. Relays are dialled by a server that uses that relay, or another one of the same operator.
    """
    places = {place for address in own if (place := _place(address)) not in _NOWHERE}
    return tuple(address for address in addresses if (place := _place(address)) in places or place == "anywhere")


def _place(address: str) -> str:
    """What kind of place an address leads to: "anywhere", near, one of _NOWHERE, or a relay's operator."""
    try:
        parsed = node_address(address)
    except UsageError:
        return "unspecified"
    if parsed.relay:
        return f"relay {_operator(parsed)}"
    try:
        ip = _inner(ipaddress.ip_address(parsed.host))
    except ValueError:
        return "anywhere"  # of a transport without IP addresses
    kinds = {
        "multicast": ip.is_multicast or ip == ipaddress.ip_address("255.255.255.255"),
        "unspecified": ip.is_unspecified or ip in ipaddress.ip_network("0.0.0.0/8"),
        "loopback": ip.is_loopback,
        "link-local": ip.is_link_local,
        "private": any(ip in network for network in _PRIVATE),
    }
    return next((kind for kind, holds in kinds.items() if holds), "anywhere")


def _inner(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if any(ip in network for network in _TRANSLATED) and not (ip.is_loopback or ip.is_unspecified):
        return ipaddress.IPv4Address(ip.packed[-4:])
    return ip.ipv4_mapped or ip.sixtofour or ip


def _operator(relay: NodeAddress) -> str:
    host = relay.host.lower().rstrip(".")
    family = "" if is_ip(host) else host.partition(".")[2]  # numbers have no domain
    port = f":{relay.port}" if relay.port else ""
    return f"*.{family}{port}" if family.count(".") >= _FAMILY_LABELS - 1 else f"{host}{port}"
