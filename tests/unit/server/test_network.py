"""A server's side of the network: its key, its transports, and what it publishes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.server.network import Network, OpenedNode, node_credentials, open_node
from shoal.server.serve_options import ServeOptions
from shoal.swarm.directory.records import RECORD_LIFETIME_S
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership.certificate_issuer import Issuer
from shoal.swarm.membership.member_transport import MemberTransport
from shoal.swarm.membership.storage import PrivateSwarm, SwarmFolder
from shoal.transport.channel import Transport
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.types import PeerId
from tests.records import FINGERPRINT, signed_record
from tests.support.virtual_clock import VirtualClock

ME, OTHER = Identity.generate(), Identity.generate()


def network_of(clock: VirtualClock, node: OpenedNode | None = None, **options: object) -> Network:
    """What is tested, on one memory transport."""
    opened = node or OpenedNode(ME, None, [MemoryTransport(ME.peer, MemoryNetwork())])
    config = ServeOptions(model="any", **options)  # type: ignore[arg-type]  # as they are named
    return Network(config, opened, FINGERPRINT, lambda text: None, clock)


def test_which_key_names_a_node(tmp_path: Path) -> None:
    """That of the file, which is made if need be; a fresh one each time without a file."""
    clock = VirtualClock()
    kept = ServeOptions(model="any", identity=tmp_path / "key")
    assert node_credentials(kept, clock).identity.peer == node_credentials(kept, clock).identity.peer
    fresh = ServeOptions(model="any")
    assert node_credentials(fresh, clock).identity.peer != node_credentials(fresh, clock).identity.peer
    assert node_credentials(fresh, clock).applicant is None


def test_the_key_of_a_private_swarm(tmp_path: Path) -> None:
    """The swarm's folder keeps it; a name that stands for nothing is refused."""
    config = ServeOptions(model="any", private=PrivateSwarm(name="home", home=tmp_path))
    with pytest.raises(UsageError, match="no private swarm"):
        node_credentials(config, VirtualClock())
    folder = SwarmFolder("home", tmp_path)
    folder.create_owner()
    identity, applicant = node_credentials(config, VirtualClock())
    assert applicant is not None
    assert identity.peer == folder.node("server").identity().peer


class Closing(MemoryTransport):
    """Says when it is closed."""

    closed = 0

    async def close(self) -> None:
        """Transport."""
        self.closed += 1
        await super().close()


async def test_transports_are_wrapped_and_closed(tmp_path: Path) -> None:
    """In a private swarm each has its gate before it; the stack closes those within."""
    made: list[Closing] = []

    def wrap(transport: Transport, peer: PeerId) -> Transport:
        made.append(Closing(peer, MemoryNetwork()))
        return made[-1]

    SwarmFolder("home", tmp_path).create_owner()
    private = PrivateSwarm(name="home", home=tmp_path)
    for config in (
        ServeOptions(model="any", transport="tls"),
        ServeOptions(model="any", transport="tls", private=private),
    ):
        clock = VirtualClock()
        credentials = node_credentials(config, clock)
        async with contextlib.AsyncExitStack() as stack:
            node = await open_node(config, credentials, wrap, stack)
            assert node.identity is credentials.identity
            [transport] = node.transports
            assert isinstance(transport, MemberTransport) == (config.private is not None)
            assert (node.member is None) == (config.private is None)
            assert transport.name == made[-1].name
        assert [one.closed for one in made] == [1] * len(made)


async def test_a_record_is_published_with_its_times_and_a_new_number() -> None:
    """Always a higher one, however fast, and also after a restart; it is in the directory then."""
    clock = VirtualClock()
    network = network_of(clock)
    first = network.publish(signed_record(ME).record)
    second = network.publish(signed_record(ME).record)
    assert first.sequence < second.sequence
    assert second.issued_at == clock.wall()
    assert second.expires_at == clock.wall() + RECORD_LIFETIME_S
    held = network.directory.get(ME.peer)
    assert held is not None
    assert held.record == second
    await clock.advance(1.0)
    assert network_of(clock).publish(signed_record(ME).record).sequence > second.sequence


async def test_addresses_are_those_that_it_listens_on() -> None:
    """None before; what was asked for in the record does not count."""
    network = network_of(VirtualClock())
    assert network.publish(signed_record(ME).record).addresses == ()
    async with contextlib.AsyncExitStack() as stack:
        await network.listen(stack)
        assert network.addresses == (f"memory://{ME.peer}",)


def test_whom_it_knows_at_first() -> None:
    """The tickets that it was given; one that is none is refused."""
    ticket = Ticket(OTHER.peer, ("tls://127.0.0.1:1",))
    assert network_of(VirtualClock(), peers=(str(ticket),)).gossip.tickets == (ticket,)
    with pytest.raises(UsageError):
        network_of(VirtualClock(), peers=("nonsense",))


def test_an_upload_limit_is_one_for_all_links() -> None:
    """In bytes, and none unless it was asked for."""
    assert network_of(VirtualClock()).throttle is None
    throttle = network_of(VirtualClock(), max_upload_bits_per_s=8000.0).throttle
    assert throttle is not None
    assert throttle.try_take(100)
    assert not throttle.try_take(1)


async def test_a_private_server_knows_members_only(tmp_path: Path) -> None:
    """Its own record goes with its certificate; a stranger's is not taken."""
    clock = VirtualClock()
    folder = SwarmFolder("home", tmp_path)
    key = folder.create_owner()
    config = ServeOptions(model="any", private=PrivateSwarm(name="home", home=tmp_path), transport="tls")
    async with contextlib.AsyncExitStack() as stack:
        node = await open_node(config, node_credentials(config, clock), None, stack)
        network = network_of(clock, node)
        network.publish(signed_record(node.identity).record)
        [data, proof] = network.directory.select([node.identity.peer])
        assert node.member is not None
        assert proof == node.member.proof
        times = {"issued_at": clock.wall(), "expires_at": clock.wall() + 60}
        assert not network.directory.add(signed_record(OTHER, **times).data, OTHER.peer)
        certificate = Issuer(key.peer, key).certify(OTHER.peer, clock.wall())
        assert network.directory.add(signed_record(OTHER, **times).data, OTHER.peer, certificate)
        assert data
