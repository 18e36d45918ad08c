"""The DHT with real libtorrent nodes on loopback, and what its replies may and may not name."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import NetworkError, UsageError
from shoal.swarm.discovery.dht import MAX_CONTACTS, DhtDiscovery, Replies, askable, swarm_key
from shoal.swarm.discovery.discovery import Presence
from shoal.swarm.discovery.libtorrent_session import (
    LibtorrentOptions,
    LibtorrentSession,
)
from shoal.types import PeerId
from tests.support.local_dht import free_port, local_dht, node_host

NODES = 20
PORT = 40_000
pytest.importorskip("libtorrent")


def presence(port: int) -> Presence:
    """Somebody whose hello is at this port."""
    return Presence(PeerId("a" * 64), "f" * 32, (), port)


async def everybody(discovery: DhtDiscovery) -> set[str]:
    """The addresses of all contacts of one lookup."""
    return {contact.addresses[0] async for contact in discovery.find()}


async def test_everybody_finds_everybody() -> None:
    """In a DHT of 20 nodes each announces itself and then finds all 20, those of another name left out."""
    async with local_dht(NODES) as engines:
        members = [DhtDiscovery(engine, "one swarm") for engine in engines]
        wanted = {f"hello://{node_host(index)}:{PORT + index}" for index in range(NODES)}
        # Nodes that were all born at once know too few to announce near the key at first.
        async with asyncio.timeout(30):
            while await asyncio.gather(*map(everybody, members)) != [wanted] * NODES:
                await asyncio.gather(*(one.announce(presence(PORT + index)) for index, one in enumerate(members)))
        await DhtDiscovery(engines[3], "another swarm").announce(presence(9))
        assert await everybody(DhtDiscovery(engines[0], "another swarm")) == {f"hello://{node_host(3)}:9"}


async def test_a_port_that_is_taken_is_named() -> None:
    """Others were told this port: the node does not quietly take the next one, and says what is wrong."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        engine = LibtorrentSession(
            LibtorrentOptions(interface="127.0.0.1", port=port, nodes=(f"127.0.0.1:{free_port()}",))
        )
        try:
            with pytest.raises(UsageError, match=f"127.0.0.1:{port}.* in use"):
                await everybody(DhtDiscovery(engine, "a swarm"))
        finally:
            await engine.close()


async def test_a_node_without_others_says_so() -> None:
    """A DHT in which nobody answers is a fault of the network, not an empty result."""

    class Hasty:
        """A clock on which waiting takes no time."""

        now = 0.0

        def monotonic(self) -> float:
            """Moves with every sleep."""
            return self.now

        def wall(self) -> float:
            """The same."""
            return self.now

        async def sleep(self, seconds: float) -> None:
            """Lets others run."""
            self.now += seconds
            await asyncio.sleep(0)

    engine = LibtorrentSession(LibtorrentOptions(interface="127.0.0.1", nodes=(f"127.0.0.1:{free_port()}",)))
    discovery = DhtDiscovery(engine, "name", clock=Hasty())
    with pytest.raises(NetworkError, match="no node"):
        await everybody(discovery)
    with pytest.raises(NetworkError, match="no node"):
        await discovery.announce(presence(1))
    await discovery.close()
    await discovery.close()
    with pytest.raises(UsageError, match="closed"):
        await discovery.announce(presence(1))


def test_swarm_names() -> None:
    """The key is sha1 of the prefix and the name; impossible names are refused."""
    assert swarm_key("abc").hex() == hashlib.sha1(b"shoal/1/abc").hexdigest()
    for name in ("", "x" * 129):
        with pytest.raises(UsageError):
            swarm_key(name)


def test_no_node_crowds_out_the_others() -> None:
    """One reply of a hundred inventions and one of a single peer: the single one is among the first two contacts."""
    replies = Replies(random.Random(1), allow_private=True)
    replies.take([("127.0.0.9", port) for port in range(1, 101)])
    replies.take([("127.0.0.1", 7)])
    first_two = {contact.addresses[0] for _ in range(2) if (contact := replies.next()) is not None}
    assert "hello://127.0.0.1:7" in first_two


def test_replies_are_bounded() -> None:
    """However many peers are named, only so many contacts come of them, none twice."""
    replies = Replies(random.Random(1), allow_private=True)
    for node in range(100):
        replies.take([(f"127.0.{node}.{index}", 1 + index) for index in range(1, 200)])
        replies.take([("127.0.0.1", 7)])
    contacts = []
    while (contact := replies.next()) is not None:
        contacts.append(contact)
    assert len(contacts) == len(set(contacts)) == MAX_CONTACTS


@pytest.mark.parametrize(
    ("host", "port", "private", "public"),
    [
        ("93.184.216.34", 4433, True, True),
        ("2606:2800:220:1::1", 4433, True, True),
        ("93.184.216.34", 0, False, False),
        ("127.0.0.1", 22, True, False),
        ("10.0.0.1", 80, True, False),
        ("169.254.169.254", 80, True, False),
        ("::1", 22, True, False),
        ("fe80::1", 22, True, False),
        ("224.0.0.251", 5353, False, False),
        ("0.0.0.0", 1, False, False),
    ],
)
def test_strangers_do_not_send_us_into_private_networks(host: str, port: int, private: bool, public: bool) -> None:
    """In the public DHT only public unicast addresses are asked."""
    assert askable(host, port, allow_private=True) is private
    assert askable(host, port, allow_private=False) is public


@given(st.lists(st.tuples(st.ip_addresses().map(str), st.integers(0, 65_535)), max_size=50))
def test_any_reply_is_survived(peers: list[tuple[str, int]]) -> None:
    """Whatever addresses a reply holds, contacts are those that may be asked."""
    replies = Replies(random.Random(1), allow_private=False)
    replies.take(peers)
    while (contact := replies.next()) is not None:
        assert contact.peer is None
