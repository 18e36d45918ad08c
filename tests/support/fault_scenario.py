"""A swarm of real processes with spares, a client with faulty links, and the damage that can be done to them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable

from shoal.client.client import AsyncClient
from shoal.client.remote_model import RemoteModel
from shoal.types import PeerId
from tests.support.faults import Faults
from tests.support.link_plan import EmulatedLink
from tests.support.server_cluster import ServerCluster, ServerProcess

SERVERS_PER_SPAN = 3
MIN_LIVE = 2

STOPPED_S = 2.0
"""How long a whole machine pauses."""

HANG_S = 8.0
FLAP_S = 0.4
SLOW = EmulatedLink(delay_s=0.05, rate_bytes_s=100_000.0)
DOWN = EmulatedLink(up=False)


class FaultScenario:
    """Servers, and the client whose replies are disturbed."""

    def __init__(self, troupe: ServerCluster, client: AsyncClient, model: RemoteModel, faults: Faults) -> None:
        self.troupe = troupe
        self.client = client
        self.model = model
        self.faults = faults
        self._starting: set[asyncio.Task[ServerProcess]] = set()

    @property
    def me(self) -> PeerId:
        """The client's node id."""
        return self.client.identity.peer

    async def restore(self) -> None:
        """End all disturbances, and have spares for every span; those that failed long ago are forgotten."""
        everybody = [*(actor.peer for actor in self.troupe.live), self.me]
        for actor in self.troupe.live:
            actor.send_signal(signal.SIGCONT)
        for actor in self.troupe.live:
            await actor.order("links", peers=everybody)
            await actor.order("corrupt", count=0)
            await actor.order("full", on=False)
        self.faults.set_links(self.me, everybody, EmulatedLink())
        self._recruit()
        while not self._staffed(MIN_LIVE):
            await asyncio.wait(self._starting, return_when=asyncio.FIRST_COMPLETED)
        await self.client.refresh()

    async def rows(self) -> dict[str, int]:
        """How many rows every server that answers has computed, by name."""
        counts: dict[str, int] = {}
        for actor in self.troupe.live:
            actor.send_signal(signal.SIGCONT)
            counts[actor.name] = (await actor.order("stats"))["rows"]
        return counts

    def _recruit(self) -> None:
        spans = [actor.span for actor in self.troupe.actors if actor.alive]
        for span in dict.fromkeys(actor.span for actor in self.troupe.actors):
            for _ in range(SERVERS_PER_SPAN - spans.count(span)):
                task = asyncio.ensure_future(self.troupe.enlist(span))
                self._starting.add(task)
                task.add_done_callback(self._starting.discard)

    def _staffed(self, count: int) -> bool:
        live = [actor.span for actor in self.troupe.live]
        return all(live.count(actor.span) >= count for actor in self.troupe.actors)

    async def close(self) -> None:
        """Wait for servers that are still starting."""
        await asyncio.gather(*self._starting, return_exceptions=True)


Damage = Callable[[FaultScenario, list[ServerProcess], random.Random], Awaitable[None]]
"""What is done to the servers of a route."""


async def kill(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """One server dies (kill -9)."""
    rng.choice(route).send_signal(signal.SIGKILL)


async def kill_two(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """Two of them die together."""
    for actor in rng.sample(route, 2):
        actor.send_signal(signal.SIGKILL)


async def freeze(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """One stops, and its connections stay."""
    rng.choice(route).send_signal(signal.SIGSTOP)


async def hang(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """One's compute thread does not come back; it goes on beating."""
    await rng.choice(route).order("hang", seconds=HANG_S)


async def partition(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """One is cut off from everybody."""
    victim = rng.choice(route)
    everybody = [*(actor.peer for actor in scene.troupe.live), scene.me]
    scene.faults.set_links(scene.me, [victim.peer], DOWN)
    await victim.order("links", peers=everybody, up=False)


async def split(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """Two neighbours lose sight of each other; the client sees both."""
    at = rng.randrange(len(route) - 1)
    await route[at].order("links", peers=[route[at + 1].peer], up=False)
    await route[at + 1].order("links", peers=[route[at].peer], up=False)


async def slow(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """One's links become slow."""
    everybody = [*(actor.peer for actor in scene.troupe.live), scene.me]
    await rng.choice(route).order("links", peers=everybody, delay_s=SLOW.delay_s, rate_bytes_s=SLOW.rate_bytes_s)


async def corrupt(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """Some of one's frames come out wrong."""
    await rng.choice(route).order("corrupt", count=rng.randint(1, 5))


async def full(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """One dies, and the first to replace it turns out to be full."""
    victim = rng.choice(route)
    spares = [actor for actor in scene.troupe.live if actor.span == victim.span and actor is not victim]
    if len(spares) > 1:
        await min(spares, key=lambda actor: actor.peer).order("full", on=True)
    victim.send_signal(signal.SIGKILL)


async def flap(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """One comes and goes."""
    victim = rng.choice(route)
    for _ in range(3):
        victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(FLAP_S * (1 + 4 * rng.random()))
        victim.send_signal(signal.SIGCONT)
        await asyncio.sleep(FLAP_S)


async def pause(scene: FaultScenario, route: list[ServerProcess], rng: random.Random) -> None:
    """The whole machine stops for a while, this process included."""
    pids = " ".join(str(pid) for pid in (*(actor.pid for actor in scene.troupe.live), os.getpid()))
    script = f"kill -STOP {pids}; sleep {STOPPED_S}; kill -CONT {pids}"
    stopper = await asyncio.create_subprocess_exec("/bin/sh", "-c", script, start_new_session=True)
    await stopper.wait()  # it stops this process too


DAMAGES: dict[str, Damage] = {
    damage.__name__: damage
    for damage in (kill, freeze, hang, partition, split, slow, corrupt, full, flap, pause, kill_two)
}
