"""The transports of one node, as users ask for them."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.errors import UsageError
from shoal.transport.address import host_port, join_host_port
from shoal.transport.channel import ChannelHandler, Transport
from shoal.transport.handshake_turns import HandshakeTurns
from shoal.transport.tls_transport import TlsTransport

TRANSPORTS = ("tls", "iroh")
LOOPBACK = "127.0.0.1:0"


def check_transport(name: str | None) -> str | None:
    """The name, if it is one of TRANSPORTS or None; raises UsageError."""
    if name is not None and name not in TRANSPORTS:
        raise UsageError(f"there is no transport {name!r}: choose one of {', '.join(TRANSPORTS)}")
    return name


def make_transports(
    key: Ed25519PrivateKey, listen: str = LOOPBACK, only: str | None = None, relay: str | None = None
) -> tuple[Transport, ...]:
    """TLS and iroh for one node key, or only one of them; nothing is bound before `listen` or `dial`.

    `relay` is for iroh: a URL, iroh.PUBLIC_RELAY, or None for none.
    """
    check_transport(only)
    transports: list[Transport] = []
    turns = HandshakeTurns()
    if only != "iroh":
        transports.append(TlsTransport(key, listen=listen, turns=turns))
    if only != "tls":
        from shoal.transport.iroh_transport import IrohTransport

        bind = join_host_port(host_port(listen)[0], 0)
        transports.append(IrohTransport(key, bind=bind, relay=relay, turns=turns))
    return tuple(transports)


async def listen_all(transports: Sequence[Transport], handler: ChannelHandler) -> tuple[str, ...]:
    """Start all of them; returns their addresses, TLS first. Raises UsageError when one cannot be bound."""
    for transport in transports:
        await transport.listen(handler)
    return tuple(address for transport in transports for address in transport.addresses)
