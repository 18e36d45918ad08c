"""Whom a server believes to be alive."""

from __future__ import annotations

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import DialError
from shoal.server.gossip import Gossip
from shoal.swarm.directory.directory import Directory
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel
from shoal.types import ModelSpec, PeerId
from tests.records import FINGERPRINT, signed_record

TINY = ModelSpec("tiny", FINGERPRINT, 12, 48)
ME, DEAD, OTHER = Identity.generate(), Identity.generate(), Identity.generate()


class NobodyAnswers:
    """A dialler in a network that is down."""

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> Channel:
        """Dialler."""
        raise DialError(f"{peer[:8]} cannot be reached")


def gossip_of(directory: Directory, heard: list[str]) -> Gossip:
    """What is tested."""
    return Gossip(ME.peer, directory, NobodyAnswers(), heard.append, SYSTEM_CLOCK)  # type: ignore[arg-type]  # it dials


async def test_who_does_not_answer_is_not_counted_until_it_comes() -> None:
    """Records prove nothing, old or new: a silent node may sign as many as it likes. Who exchanges with this node is there."""
    directory, heard = Directory(SYSTEM_CLOCK), list[str]()
    gossip = gossip_of(directory, heard)
    directory.add(signed_record(DEAD, sequence=5).data, OTHER.peer)
    assert [one.peer for one in gossip.others()] == [DEAD.peer]
    await gossip.ask(TINY)
    assert gossip.others() == []
    assert heard == [f"{DEAD.peer[:8]} does not answer: {DEAD.peer[:8]} cannot be reached"]
    directory.add(signed_record(DEAD, sequence=6).data, OTHER.peer)
    assert gossip.others() == []
    directory.begin_exchange(DEAD.peer)
    assert [one.sequence for one in gossip.others()] == [6]


async def test_a_silent_node_that_speaks_again_is_asked_again() -> None:
    """As long as it says nothing new it is left alone."""
    directory, heard = Directory(SYSTEM_CLOCK), list[str]()
    gossip = gossip_of(directory, heard)
    directory.add(signed_record(DEAD, sequence=5).data, OTHER.peer)
    for _ in range(2):
        await gossip.ask(TINY)
    assert len(heard) == 1
    directory.add(signed_record(DEAD, sequence=6).data, OTHER.peer)
    await gossip.ask(TINY)
    assert len(heard) == 2


async def test_a_crowd_of_silent_nodes_counts_for_nothing() -> None:
    """A stranger's thousand servers of all blocks, of which some were asked; those that have answered count as before."""
    directory = Directory(SYSTEM_CLOCK)
    gossip = gossip_of(directory, [])
    directory.add(signed_record(OTHER).data, OTHER.peer, network="192.0.2.2")
    directory.answered(OTHER.peer)
    fakes = [Identity.generate() for _ in range(1000)]
    for key in fakes:
        directory.add(signed_record(key).data, key.peer, network="192.0.2.3")
    await gossip.ask(TINY, [key.peer for key in fakes[:16]])
    assert [one.peer for one in gossip.others(TINY)] == [OTHER.peer]
    directory.answered(fakes[-1].peer)
    assert {one.peer for one in gossip.others(TINY)} == {OTHER.peer, fakes[-1].peer}


async def test_only_the_servers_that_were_named_are_asked() -> None:
    """The others are believed to be alive as before."""
    directory = Directory(SYSTEM_CLOCK)
    gossip = gossip_of(directory, [])
    directory.add(signed_record(DEAD).data)
    directory.add(signed_record(OTHER).data)
    await gossip.ask(TINY, [PeerId(DEAD.peer)])
    assert [one.peer for one in gossip.others()] == [OTHER.peer]


async def test_others_are_of_the_model_that_is_asked_for() -> None:
    """A server does not count itself, nor servers of another model."""
    directory = Directory(SYSTEM_CLOCK)
    gossip = gossip_of(directory, [])
    directory.add(signed_record(ME).data)
    directory.add(signed_record(DEAD, model=ModelSpec("tiny", "ab" * 16, 12, 48)).data)
    directory.add(signed_record(OTHER).data)
    assert [one.peer for one in gossip.others(TINY)] == [OTHER.peer]
    assert {one.peer for one in gossip.others()} == {DEAD.peer, OTHER.peer}


async def test_a_record_of_another_shape_is_of_another_model() -> None:
    """A stranger's word on how many blocks a model has counts for no plan."""
    directory = Directory(SYSTEM_CLOCK)
    gossip = gossip_of(directory, [])
    directory.add(signed_record(DEAD, model=ModelSpec("tiny", FINGERPRINT, 13, 48)).data)
    directory.add(signed_record(OTHER, model=ModelSpec("called else", FINGERPRINT, 12, 48)).data)
    assert [one.peer for one in gossip.others(TINY)] == [OTHER.peer]


async def test_half_of_those_asked_have_answered_before() -> None:
    """A crowd of one address takes neither them nor the chance of others."""
    directory = Directory(SYSTEM_CLOCK)
    gossip = gossip_of(directory, [])
    met = [Identity.generate() for _ in range(6)]
    for key in met:
        directory.add(signed_record(key).data, key.peer, network="192.0.2.1")
        directory.answered(key.peer)
    directory.add(signed_record(OTHER).data, OTHER.peer, network="192.0.2.2")
    for _ in range(200):
        key = Identity.generate()
        directory.add(signed_record(key).data, key.peer, network="192.0.2.3")
    for _ in range(20):
        chosen = [one.peer for one in gossip._choose(gossip.others(), 8)]
        assert len(set(chosen)) == 8
        assert len(set(chosen) & {key.peer for key in met}) == 4
        assert OTHER.peer in chosen
    single = [gossip._choose(gossip.others(), 1)[0].peer for _ in range(100)]
    assert 10 < sum(peer in {key.peer for key in met} for peer in single) < 90
    assert gossip._choose([], 8) == []


async def test_everybody_is_asked_where_there_are_few() -> None:
    """Whatever they have shown."""
    directory = Directory(SYSTEM_CLOCK)
    gossip = gossip_of(directory, [])
    for key in (DEAD, OTHER):
        directory.add(signed_record(key).data, key.peer)
    directory.answered(OTHER.peer)
    assert {one.peer for one in gossip._choose(gossip.others(), 8)} == {DEAD.peer, OTHER.peer}
    assert {gossip._choose(gossip.others(), 1)[0].peer for _ in range(64)} == {DEAD.peer, OTHER.peer}
