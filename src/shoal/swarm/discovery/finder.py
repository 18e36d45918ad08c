"""From wherever discoveries point to members whose records are here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import FingerprintMismatch, IdentityError, NetworkError, RecordError, ShoalError
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.swarm.discovery.discovery import HELLO_SCHEME, Contact, Discovery
from shoal.swarm.discovery.hello import ask_hello
from shoal.tasks import first_done
from shoal.transport.address import host_port, source_network
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.types import PeerId

MAX_MEETINGS = 32
"""Contacts tried at once. Strangers that say nothing hold a place for the hello's deadline."""

EXCHANGE_S = 5.0
"""For dialling a member and exchanging records with it."""

MAX_PROBLEMS = 8
"""Causes kept for the message when nobody was found."""


class Finder:
    """Tries contacts in parallel until one exchanged records, into `directory`.

    With a `fingerprint` members of other models do not count, and the first one ends the search; without, every contact
    of a search is met, since the next may be of another model. `me` is a node not to meet: this one.
    """

    def __init__(
        self,
        directory: Directory,
        dialler: Dialler,
        discoveries: Sequence[Discovery],
        fingerprint: str | None = None,
        me: PeerId | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._directory = directory
        self._dialler = dialler
        self._discoveries = discoveries
        self._fingerprint = fingerprint
        self._me = me
        self._clock = clock
        self.problems: list[str] = []

    async def find(self) -> bool:
        """Whether a member was met; if not, `problems` says why, as far as anybody was there to be tried.

        Several searches may be under way; `problems` are those of the last one that ended.
        """
        search = _Search(self._meet)
        try:
            return await self._run(search)
        finally:
            self.problems = search.problems

    async def _run(self, search: _Search) -> bool:
        if self._fingerprint is None:
            await search.follow_all(self._discoveries)
        else:
            await first_done(search.follow_all(self._discoveries), search.met.wait())
        return search.met.is_set()

    async def _meet(self, contact: Contact) -> bool:
        """Learn who it is if that is not known, then exchange records; whether it counts. Raises what fails."""
        known = contact if contact.peer is not None else await self._introduced(contact)
        peer = known.peer
        if peer is None or peer == self._me:
            return False
        try:
            async with asyncio.timeout(EXCHANGE_S):
                async with FrameChannel(await self._dialler.dial(peer, known.addresses)) as channel:
                    await exchange.ask(channel, self._directory, self._fingerprint or "")
        except TimeoutError as error:
            raise NetworkError(f"{peer[:8]} does not exchange records within {EXCHANGE_S:g} s") from error
        signed, problem = self._directory.get(peer), self._directory.problem(peer)
        if signed is None and problem is not None:
            raise RecordError(problem)
        return self._fingerprint is None or (
            signed is not None and signed.record.model.fingerprint == self._fingerprint
        )

    async def _introduced(self, contact: Contact) -> Contact:
        """Whoever says hello at the contact's first address."""
        host, port = host_port(contact.addresses[0], HELLO_SCHEME)
        signed = await ask_hello(host, port, self._clock)
        record = signed.record
        if self._fingerprint not in (None, record.model.fingerprint):
            raise FingerprintMismatch(f"{host}:{port} serves {record.model.name}, another model")
        if not record.addresses:
            raise IdentityError(f"{record.peer[:8]} tells no address")
        if record.peer != self._me:
            network = PeerId(source_network(host) or host)  # anybody may say hello with the record of another
            self._directory.add(signed.data, network)
        return Contact(PeerId(record.peer), record.addresses)


class _Search:
    """One search: whether anybody was `met`, and what was wrong with the others. `meet` tries a contact."""

    def __init__(self, meet: Callable[[Contact], Awaitable[bool]]) -> None:
        self.met = asyncio.Event()
        self.problems: list[str] = []
        self._meet = meet

    async def follow_all(self, discoveries: Sequence[Discovery]) -> None:
        """Try every contact of all of them; one that fails is a problem and no more."""
        places = asyncio.Semaphore(MAX_MEETINGS)
        async with asyncio.TaskGroup() as group:
            for discovery in discoveries:
                group.create_task(self._follow(discovery, group, places))

    async def _follow(self, discovery: Discovery, group: asyncio.TaskGroup, places: asyncio.Semaphore) -> None:
        """Meet this discovery's contacts; a place is taken before the next contact is asked for, so that it can choose."""
        try:
            async with contextlib.aclosing(discovery.find()) as contacts:
                while (contact := await _next(contacts, places)) is not None:
                    group.create_task(self._take_place(contact, places))
        except ShoalError as error:
            self._note(f"{discovery.name}: {error}")

    async def _take_place(self, contact: Contact, places: asyncio.Semaphore) -> None:
        try:
            if await self._meet(contact):
                self.met.set()
        except ShoalError as error:
            self._note(str(error))
        finally:
            places.release()

    def _note(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


async def _next(contacts: AsyncGenerator[Contact, None], places: asyncio.Semaphore) -> Contact | None:
    """The next contact, with a place taken for it; None at the end, without."""
    await places.acquire()
    contact = None
    try:
        contact = await anext(contacts, None)
    finally:
        if contact is None:
            places.release()
    return contact
