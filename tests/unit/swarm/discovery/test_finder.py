"""Meeting contacts: the first real member is enough, and strangers cost their own place only."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import pytest

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import NetworkError
from shoal.protocol.messages import RecordDigest
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.swarm.discovery.discovery import Contact, Presence
from shoal.swarm.discovery.finder import MAX_MEETINGS, MAX_PROBLEMS, Finder
from shoal.swarm.discovery.hello import HelloServer
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.types import ModelSpec, PeerId
from tests.records import FINGERPRINT, signed_record

HOST = "127.0.0.1"


class Listed:
    """A discovery that knows a list, and counts how many of it are under way."""

    name = "list"

    def __init__(self, *contacts: Contact | Exception) -> None:
        self.contacts = contacts
        self.given = 0

    async def announce(self, presence: Presence) -> None:
        """Nothing."""

    async def find(self) -> AsyncGenerator[Contact, None]:
        """The list, in order; an exception in it is raised."""
        for contact in self.contacts:
            if isinstance(contact, Exception):
                raise contact
            self.given += 1
            yield contact

    async def close(self) -> None:
        """Nothing."""


class Member:
    """A node that exchanges records over the memory network and says hello."""

    def __init__(self, network: MemoryNetwork, fingerprint: str = FINGERPRINT) -> None:
        self.identity = Identity.generate()
        self.directory = Directory(SYSTEM_CLOCK)
        self.transport = MemoryTransport(self.identity.peer, network)
        self.addresses = (f"memory://{self.identity.peer}",)
        self.record = signed_record(self.identity, self.addresses, model=ModelSpec("tiny", fingerprint, 12, 48))
        self.directory.add(self.record.data)
        self.hello = HelloServer(HOST, 0, lambda: self.record)
        self.met = 0

    async def serve(self, channel: Channel) -> None:
        """Record exchange, nothing else."""
        self.met += 1
        framed = FrameChannel(channel)
        _, digest = await framed.expect(RecordDigest)
        await exchange.answer(framed, self.directory, digest)

    @property
    def contact(self) -> Contact:
        """As the LAN would tell it."""
        return Contact(self.identity.peer, self.addresses)

    @property
    def hint(self) -> Contact:
        """As the DHT would."""
        return Contact(None, (f"hello://{HOST}:{self.hello.port}",))


@contextlib.asynccontextmanager
async def members(*fingerprints: str) -> AsyncIterator[tuple[list[Member], Dialler]]:
    """Members of models with these fingerprints, and a dialler of somebody else's."""
    network = MemoryNetwork()
    everybody = [Member(network, fingerprint) for fingerprint in fingerprints]
    async with contextlib.AsyncExitStack() as stack:
        for member in everybody:
            await member.transport.listen(member.serve)
            stack.push_async_callback(member.transport.close)
            await stack.enter_async_context(member.hello)
        yield everybody, Dialler([MemoryTransport(Identity.generate().peer, network)])


async def test_a_hello_leads_to_everybody() -> None:
    """From one hello address the member's record and, by exchange, what it knows are here."""
    async with members(FINGERPRINT, FINGERPRINT) as ([one, two], dialler):
        one.directory.add(two.record.data)
        directory = Directory(SYSTEM_CLOCK)
        assert await Finder(directory, dialler, [Listed(one.hint)], FINGERPRINT).find()
        assert {held.record.peer for held in directory.records()} == {one.identity.peer, two.identity.peer}


@pytest.fixture
def silent() -> Iterator[Contact]:
    """A port where connections are taken and never answered: nobody calls accept."""
    with socket.create_server((HOST, 0), backlog=MAX_MEETINGS * 2) as listening:
        yield Contact(None, (f"hello://{HOST}:{listening.getsockname()[1]}",))


async def test_strangers_do_not_hold_up_the_search(silent: Contact) -> None:
    """Silent, dead and lying contacts in front, then a member: it is met while the silent ones are still waited for."""
    async with members(FINGERPRINT) as ([one], dialler):
        hostile = [silent] * (MAX_MEETINGS - 3)
        dead = [Contact(None, (f"hello://{HOST}:1",)), Contact(PeerId("a" * 64), ("memory://nobody",))]
        finder = Finder(Directory(SYSTEM_CLOCK), dialler, [Listed(*hostile, *dead, one.contact)], FINGERPRINT)
        async with asyncio.timeout(1.5):  # below the hello's deadline
            assert await finder.find()


async def test_only_so_many_are_tried_at_once(silent: Contact) -> None:
    """A discovery is asked for the next contact only when there is a place for it."""
    async with members(FINGERPRINT) as (_, dialler):
        crowd = Listed(*[silent] * 500)
        search = asyncio.create_task(Finder(Directory(SYSTEM_CLOCK), dialler, [crowd], FINGERPRINT).find())
        for _ in range(100):
            await asyncio.sleep(0)
        assert crowd.given == MAX_MEETINGS
        search.cancel()
        await asyncio.gather(search, return_exceptions=True)


async def test_other_models_do_not_count() -> None:
    """Members of another model are named, not taken for ours, by hello or by exchange."""
    async with members("e1" * 16) as ([other], dialler):
        for contact in (other.hint, other.contact):
            finder = Finder(Directory(SYSTEM_CLOCK), dialler, [Listed(contact)], FINGERPRINT)
            assert not await finder.find()
        assert other.met == 1  # the hello was enough to know


async def test_without_a_fingerprint_everybody_is_met() -> None:
    """A client that does not know the model's fingerprint meets all contacts: the wanted one may be the last."""
    async with members(FINGERPRINT, "e1" * 16) as (everybody, dialler):
        directory = Directory(SYSTEM_CLOCK)
        assert await Finder(directory, dialler, [Listed(*(one.contact for one in everybody))]).find()
        assert len(directory.records()) == 2


async def test_nobody_meets_itself() -> None:
    """A server that finds its own announcement has found nobody."""
    async with members(FINGERPRINT) as ([me], dialler):
        directory = Directory(SYSTEM_CLOCK)
        found = Listed(me.contact, me.hint)
        assert not await Finder(directory, dialler, [found], FINGERPRINT, me.identity.peer).find()
        assert me.met == 0
        assert directory.records() == []


async def test_problems_are_told_and_bounded() -> None:
    """A discovery that fails and contacts that do not answer are named, some of them; the others are still met."""
    async with members(FINGERPRINT) as ([one], dialler):
        nobody = Contact(PeerId("a" * 64), ("memory://nobody",))
        finder = Finder(Directory(SYSTEM_CLOCK), dialler, [Listed(*[nobody] * 50, NetworkError("no DHT"))], FINGERPRINT)
        assert not await finder.find()
        assert len(finder.problems) == MAX_PROBLEMS
        both = [Listed(NetworkError("no DHT")), Listed(one.contact)]
        finder = Finder(Directory(SYSTEM_CLOCK), dialler, both)
        assert await finder.find()
        assert finder.problems == ["list: no DHT"]


async def test_a_mistake_in_a_discovery_is_not_hidden() -> None:
    """An error that is not Shoal's own comes out."""
    async with members(FINGERPRINT) as (_, dialler):
        with pytest.raises(ExceptionGroup):
            await Finder(Directory(SYSTEM_CLOCK), dialler, [Listed(ZeroDivisionError())], FINGERPRINT).find()


async def test_two_searches_at_once_do_not_disturb_each_other() -> None:
    """A session that looks for servers begins a search while another one's is ending: both met somebody."""
    began, go_on = asyncio.Event(), asyncio.Event()

    class Lingering(Listed):
        """Takes a while to let go of what it looked at."""

        async def find(self) -> AsyncGenerator[Contact, None]:
            try:
                async for contact in Listed.find(self):
                    yield contact
                await asyncio.Event().wait()
            finally:
                began.set()
                await go_on.wait()

    async with members(FINGERPRINT) as ([one], dialler):
        finder = Finder(Directory(SYSTEM_CLOCK), dialler, [Lingering(one.contact)], FINGERPRINT)
        first = asyncio.create_task(finder.find())
        await began.wait()
        second = asyncio.create_task(finder.find())
        await asyncio.sleep(0)
        go_on.set()
        assert await first
        assert await second
