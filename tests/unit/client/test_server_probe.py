"""What a client believes of servers, by what they answer and by what they say anew."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from shoal.client.server_probe import ANSWER_S, ASKED_AT_ONCE, CAUGHT_ROWS, CAUGHT_S, ServerProbe
from shoal.errors import DialError, NoRoute
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import ServerRecord, sign_record
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel
from shoal.types import ModelSpec, PeerId, Span
from tests.records import FINGERPRINT
from tests.support.virtual_clock import VirtualClock

MODEL = ModelSpec("tiny", FINGERPRINT, 12, 48)
ALL = Span(0, 12)
SERVER, OTHER = Identity.generate(), Identity.generate()


class NobodyAnswers:
    """A dialler in a network that is down; it counts."""

    def __init__(self, clock: VirtualClock) -> None:
        self.dialled: list[PeerId] = []
        self.takes_s = 0.0
        self._clock = clock

    async def dial(self, peer: PeerId, addresses: tuple[str, ...], deadline_s: float = 1.0) -> Channel:
        """Dialler."""
        self.dialled.append(peer)
        if self.takes_s:
            await self._clock.sleep(self.takes_s)
        raise DialError(f"{peer[:8]} cannot be reached")


class World:
    """A directory and a survey of it, on a virtual clock."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.directory = Directory(self.clock)
        self.dialler = NobodyAnswers(self.clock)
        self.probe = ServerProbe(self.directory, self.dialler, self.clock, rng=random.Random(1))  # type: ignore[arg-type]

    def say(self, who: Identity, sequence: int) -> ServerRecord:
        """A server's record arrives, made now."""
        now = self.clock.wall()
        record = ServerRecord(who.peer, sequence, now, now + 300.0, ("tls://127.0.0.1:1",), MODEL, ALL)
        self.directory.add(sign_record(record, who).data)
        return record

    def routed(self) -> str | None:
        """The one server that a session may be given now."""
        records, _ = self.probe.candidates(MODEL)
        peers = [record.peer for record in records]
        return peers[0] if peers else None


async def test_who_does_not_answer_is_in_no_route() -> None:
    """Until it says something that it cannot have said before."""
    world = World()
    record = world.say(SERVER, 1)
    assert world.routed() == SERVER.peer
    with pytest.raises(DialError):
        await world.probe.ask(record)
    assert world.routed() is None
    old = msgspec.structs.replace(record, sequence=2)
    world.directory.add(sign_record(old, SERVER).data)
    assert world.routed() is None  # it arrived late, and is from before the failure
    await world.clock.advance(1.0)
    world.say(SERVER, 3)
    assert world.routed() == SERVER.peer


async def test_others_are_taken_instead() -> None:
    """A failure is one server's."""
    world = World()
    world.probe.failed(world.say(SERVER, 1))
    world.say(OTHER, 1)
    assert world.routed() == OTHER.peer
    assert world.probe.record(OTHER.peer).record.peer == OTHER.peer
    with pytest.raises(NoRoute, match="expired"):
        world.probe.record(Identity.generate().peer)


async def test_only_unknown_servers_of_these_blocks_are_asked() -> None:
    """Those that failed are asked again only by `retry`."""
    world = World()
    world.say(SERVER, 1)
    await world.probe.look(MODEL, ALL)
    await world.probe.look(MODEL, ALL)
    assert world.dialler.dialled == [SERVER.peer]
    await world.probe.look(ModelSpec("another", "ab" * 16, 12, 48), ALL)
    assert len(world.dialler.dialled) == 1
    await world.probe.retry()
    assert len(world.dialler.dialled) == 2


def crowd(world: World, count: int) -> list[ServerRecord]:
    """Records of servers that are not there."""
    return [world.say(Identity.generate(), 1) for _ in range(count)]


def test_whom_to_ask_first() -> None:
    """Those that a ticket names, then the others in the directory's order, then by chance; never more than so many."""
    world = World()
    records = crowd(world, 3 * ASKED_AT_ONCE)
    named = records[-1]
    probe = ServerProbe(world.directory, world.dialler, world.clock, frozenset({named.peer}))  # type: ignore[arg-type]
    first, *rest = probe.batches(records, most=2 * ASKED_AT_ONCE + 1)
    assert first == [named, *records[: ASKED_AT_ONCE - 1]]
    assert [len(some) for some in rest] == [ASKED_AT_ONCE, 1]
    others = {record.peer for some in rest for record in some}
    assert len(others) == ASKED_AT_ONCE + 1
    assert others.isdisjoint(record.peer for record in first)
    assert list(probe.batches([])) == []
    assert list(probe.batches(records[:2])) == [records[:2]]


async def test_more_are_asked_while_blocks_have_no_server_that_answers() -> None:
    """A crowd that is not there keeps nobody from the one that is, for a time."""
    world = World()
    crowd(world, 2 * ASKED_AT_ONCE)
    await world.probe.look(MODEL, ALL)
    assert len(world.dialler.dialled) == 2 * ASKED_AT_ONCE


async def test_the_search_ends_in_time() -> None:
    """It goes on for LOOK_S, however many there are."""
    world = World()
    crowd(world, 20 * ASKED_AT_ONCE)
    world.dialler.takes_s = ANSWER_S
    looking = asyncio.create_task(world.probe.look(MODEL, ALL))
    for _ in range(4):
        await world.clock.advance(ANSWER_S)
    await asyncio.wait_for(looking, 5)
    assert len(world.dialler.dialled) == 3 * ASKED_AT_ONCE


async def test_who_was_caught_comes_last_for_a_while() -> None:
    """As if its queue had no end, whatever it says anew; it is not out of all routes."""
    world = World()
    record = world.say(SERVER, 1)
    world.probe.caught(record)
    world.say(SERVER, 2)
    (known,) = world.probe.candidates(MODEL)[0]
    assert known.queued_rows == CAUGHT_ROWS
    await world.clock.advance(CAUGHT_S)
    world.say(SERVER, 3)
    (known,) = world.probe.candidates(MODEL)[0]
    assert known.queued_rows == 0
