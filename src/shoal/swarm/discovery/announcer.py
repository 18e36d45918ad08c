"""Keeps a server findable, and lets it find others, for as long as it serves."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from functools import partial
from types import TracebackType

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import ShoalError
from shoal.swarm.directory.records import MAX_ADDRESSES, SignedRecord
from shoal.swarm.discovery.discovery import HELLO_SCHEME, Discovery, Presence
from shoal.swarm.discovery.discovery_options import Discoveries
from shoal.swarm.discovery.finder import Finder
from shoal.swarm.discovery.hello import HelloServer
from shoal.tasks import OwnedTasks, keep_running
from shoal.transport.address import join_host_port
from shoal.types import PeerId

ANNOUNCE_S = 600.0
"""How often a server announces; the DHT forgets after 30 minutes."""

EARLY_S = (5.0, 30.0)
"""When the second and third come: a DHT node that has just started knows few others, maybe none near the swarm's key."""

LOOK_S = 5.0
"""When a server that knows nobody looks again; twice as long each time, up to ANNOUNCE_S."""

log = logging.getLogger("shoal.discovery")

Notice = Callable[[str], None]


class Announcer:
    """Announces a server until it is closed. Use with `async with`, once `record` gives what is to be found.

    A record's addresses are those that `reachable` gives.
    """

    def __init__(
        self,
        discoveries: Discoveries,
        finder: Finder,
        record: Callable[[], SignedRecord | None],
        notice: Notice,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._discoveries = discoveries
        self._finder = finder
        self._record = record
        self._notice = notice
        self._clock = clock
        options = discoveries.options
        self._hello = HelloServer(options.interface, options.hello_port, record, clock)
        self._tasks = OwnedTasks()
        self._problems: dict[str, str] = {}

    async def look(self) -> bool:
        """Search once for a first member; whether one was met."""
        return bool(self._discoveries.all) and await self._finder.find()

    async def start(self, renew: Callable[[], None]) -> None:
        """Answer, map, announce, look. `renew` makes a new record; it is called when the router has opened ports.

        Raises UsageError when the hello's port cannot be bound.
        """
        if not self._discoveries.all:
            return
        await self._hello.__aenter__()
        await self._map_ports(renew)
        for discovery in self._discoveries.all:
            work = partial(self._keep_announcing, discovery)
            self._tasks.start(keep_running(f"announcing on the {discovery.name}", work, self._clock, log))
        self._tasks.start(keep_running("looking for members", self._keep_looking, self._clock, log))

    async def _map_ports(self, renew: Callable[[], None]) -> None:
        mapper, signed = self._discoveries.mapper, self._record()
        if mapper is None or signed is None:
            return
        addresses = signed.record.addresses
        hello = f"{HELLO_SCHEME}://{join_host_port(self._discoveries.options.interface, self._hello.port)}"
        await mapper.map((*addresses, hello))
        if mapper.outside(addresses):
            renew()
        else:
            self._notice(f"no ports were opened at a router ({mapper.problem}): others may not reach this server")

    def reachable(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """The addresses for the record: those that the router opened come first."""
        mapper = self._discoveries.mapper
        outside = mapper.outside(addresses) if mapper is not None else ()
        return tuple(dict.fromkeys((*outside, *addresses)))[:MAX_ADDRESSES]

    def presence(self) -> Presence | None:
        """What is announced now."""
        signed, mapper = self._record(), self._discoveries.mapper
        if signed is None:
            return None
        port = self._hello.port if mapper is None else mapper.outside_port("tcp", self._hello.port)
        record = signed.record
        return Presence(PeerId(record.peer), record.model.fingerprint, record.addresses, port)

    async def _keep_announcing(self, discovery: Discovery) -> None:
        for wait_s in itertools.chain(EARLY_S, itertools.repeat(ANNOUNCE_S)):
            told = await self._announce(discovery)
            await self._clock.sleep(wait_s if told else EARLY_S[-1])

    async def _announce(self, discovery: Discovery) -> bool:
        presence, problem = self.presence(), ""
        if presence is not None:
            try:
                await discovery.announce(presence)
            except ShoalError as error:
                problem = str(error)
        if problem and self._problems.get(discovery.name) != problem:
            self._notice(f"not announced on the {discovery.name}: {problem}")
        self._problems[discovery.name] = problem
        return not problem

    async def _keep_looking(self) -> None:
        """Soon while nobody is known; now and then otherwise, which joins swarms that grew apart."""
        wait_s = LOOK_S
        while True:
            met = await self._finder.find()
            await self._clock.sleep(ANNOUNCE_S if met else wait_s)
            wait_s = min(2 * wait_s, ANNOUNCE_S)

    async def __aenter__(self) -> Announcer:
        for notice in self._discoveries.notices:
            self._notice(notice)
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop announcing and answering, and withdraw."""
        try:
            await self._tasks.__aexit__(kind, error, trace)
        finally:
            await self._hello.close()
            await self._discoveries.close()
