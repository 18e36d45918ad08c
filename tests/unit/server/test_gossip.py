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


async def test_who_does_not_answer_is_not_counted_until_it_says_something_new() -> None:
    """A record from before the silence proves nothing."""
    directory, heard = Directory(SYSTEM_CLOCK), list[str]()
    gossip = gossip_of(directory, heard)
    directory.add(signed_record(DEAD, sequence=5).data)
    assert [one.peer for one in gossip.others()] == [DEAD.peer]
    await gossip.ask(TINY)
    assert gossip.others() == []
    assert heard == [f"{DEAD.peer[:8]} does not answer: {DEAD.peer[:8]} cannot be reached"]
    directory.add(signed_record(DEAD, sequence=6).data)
    assert [one.sequence for one in gossip.others()] == [6]


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
