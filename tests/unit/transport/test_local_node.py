"""The transports of one node, as users ask for them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.errors import UsageError
from shoal.transport.channel import Channel
from shoal.transport.local_node import TRANSPORTS, check_transport, listen_all, make_transports

KEY = Ed25519PrivateKey.generate()


async def refuse(channel: Channel) -> None:
    """A handler that wants nobody."""
    channel.abort()


@pytest.mark.parametrize("name", [None, *TRANSPORTS])
def test_names_that_there_are(name: str | None) -> None:
    """They come back; None stands for all of them."""
    assert check_transport(name) == name
    assert [one.name for one in make_transports(KEY, only=name)] == ([name] if name else list(TRANSPORTS))


@pytest.mark.parametrize("name", ["", "TLS", "quic"])
def test_a_name_that_there_is_not(name: str) -> None:
    """The error says which there are."""
    with pytest.raises(UsageError, match="choose one of tls, iroh"):
        make_transports(KEY, only=name)


async def test_all_of_them_listen() -> None:
    """TLS first, each on this machine only; nothing is bound before that."""
    transports = make_transports(KEY)
    assert [one.addresses for one in transports] == [(), ()]
    try:
        addresses = await listen_all(transports, refuse)
        assert addresses == tuple(address for one in transports for address in one.addresses)
        assert [address.partition("://")[0] for address in addresses] == ["tls", "iroh"]
        assert all("127.0.0.1:" in address for address in addresses)
    finally:
        for one in transports:
            await one.close()


async def test_one_that_cannot_be_bound() -> None:
    """A port that another node has is named; iroh takes a free one whatever the port."""
    first, second = make_transports(KEY, only="tls"), None
    try:
        (address,) = await listen_all(first, refuse)
        host_and_port = address.removeprefix("tls://")
        second = make_transports(KEY, host_and_port)
        with pytest.raises(UsageError, match=host_and_port):
            await listen_all(second, refuse)
        assert (await listen_all(second[1:], refuse))[0].startswith("iroh://127.0.0.1:")
    finally:
        for one in [*first, *(second or ())]:
            await one.close()
