"""Which model a client means, whether somebody serves it, and what its servers say of it.

Records are their servers' word, and anybody may be a server. What the members say that the client's tickets name comes
first; where none of them has a word in it, nothing is settled by a record alone, but by a server that answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from shoal.client.server_probe import ServerProbe
from shoal.clock import Clock
from shoal.errors import FingerprintMismatch, NetworkError, NoRoute, ShoalError
from shoal.protocol.messages import DESCRIBE, Describe, Description
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.routing.route_planner import same_model
from shoal.transport.asking import ask
from shoal.transport.dialler import Dialler
from shoal.types import ModelSpec

REFRESH_S = 1.0
"""How often the swarm is asked again while blocks are missing."""

DESCRIBE_S = 3.0
"""How long servers may take that are asked to describe their model, all at once."""

MAX_PROBLEMS = 8
"""Causes that an error lists."""


class ServedModels:
    """Models as a client's directory has them; `vouchers` are the node ids in its tickets.

    `wanted` is the fingerprint of the model that the client is after, once it is known.
    """

    def __init__(
        self,
        directory: Directory,
        dialler: Dialler,
        probe: ServerProbe,
        vouchers: frozenset[str],
        refresh: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._dialler = dialler
        self._probe = probe
        self._vouchers = vouchers
        self.wanted = ""
        self._refresh = refresh
        self._clock = clock

    def _records(self) -> list[ServerRecord]:
        return [signed.record for signed in self._directory.records()]

    def _vouched(self) -> list[ServerRecord]:
        return [record for record in self._records() if record.peer in self._vouchers]

    async def find(self, name: str | None, fingerprint: str | None, wait_s: float) -> ModelSpec:
        """The model by its name or fingerprint, or the only one, as a server describes it; waits for a first one.

        Raises NoRoute when nobody serves it, FingerprintMismatch when checkpoints differ: at once where members that tickets
        name do.
        """
        deadline = self._clock.monotonic() + wait_s
        while True:
            records = self._records()
            try:
                return same_model(records, name, fingerprint, self._vouchers)[0].model
            except NoRoute as error:
                problem: ShoalError = error
            except FingerprintMismatch as error:
                with contextlib.suppress(NoRoute):
                    same_model(self._vouched(), name, fingerprint)
                problem = error
                with contextlib.suppress(NoRoute, FingerprintMismatch):
                    return same_model(await self._probe.answering(records), name, fingerprint)[0].model
            await self._try_again(deadline, problem)

    async def wait_for(self, model: ModelSpec, wait_s: float) -> None:
        """Wait for a first server of a checkpoint that is on this side; raises what `find` raises."""
        self.wanted = model.fingerprint
        deadline = self._clock.monotonic() + wait_s
        while not any(record.model.checkpoint == model.checkpoint for record in self._records()):
            others = [record for record in self._records() if record.model.fingerprint != model.fingerprint]
            with contextlib.suppress(NoRoute):
                same_model([one for one in others if one.peer in self._vouchers], model.name, model.fingerprint)
            try:
                same_model(others, model.name, model.fingerprint)
            except (NoRoute, FingerprintMismatch) as error:
                await self._try_again(deadline, error)

    async def _try_again(self, deadline: float, problem: ShoalError) -> None:
        """Hear what is new; raises the problem when the time is over."""
        if self._clock.monotonic() >= deadline:
            raise self._explained(problem)
        await self._clock.sleep(REFRESH_S)
        with contextlib.suppress(NetworkError):  # the wait's own deadline decides
            await self._refresh()

    def _explained(self, problem: ShoalError) -> ShoalError:
        """The problem, and why records were dropped, if any were: perhaps that is the cause."""
        dropped = self._directory.problems
        if not isinstance(problem, NoRoute) or not dropped:
            return problem
        return NoRoute(f"{problem}; records were dropped: {'; '.join(dropped[-MAX_PROBLEMS:])}", problem.missing)

    async def describe(self, model: ModelSpec) -> tuple[Description, bytes]:
        """The model's description and its configuration as JSON text, from a server of it. Raises NoRoute."""
        servers = [record for record in self._records() if record.model.fingerprint == model.fingerprint]
        return (await self._described(servers, model.name))[0]

    async def descriptions(self, wait_s: float) -> list[Description]:
        """What may be meant by the model that the swarm serves, each thing that servers of it say once.

        It is what members serve that tickets name; where none of them serves anything, whatever a server answers for. Waits
        for a first server. Raises NoRoute when nobody describes what it has.
        """
        deadline = self._clock.monotonic() + wait_s
        while not (records := self._records()):
            await self._try_again(deadline, NoRoute("no server of the swarm serves anything"))
        vouched = {record.model.fingerprint for record in self._vouched()}
        servers = [record for record in records if not vouched or record.model.fingerprint in vouched]
        return [description for description, _ in await self._described(servers, "its model")]

    async def _described(self, servers: list[ServerRecord], what: str) -> list[tuple[Description, bytes]]:
        """What the first of these servers say that say anything, each thing once."""
        problems: list[str] = []
        for some in self._probe.batches(servers):
            answers = await asyncio.gather(*map(self._describe, some))
            problems += [answer for answer in answers if isinstance(answer, str)]
            told = [answer for answer in answers if not isinstance(answer, str)]
            if told:
                return list({msgspec.structs.astuple(answer[0]): answer for answer in told}.values())
        raise NoRoute(f"no server describes {what}: {'; '.join(problems[:MAX_PROBLEMS]) or 'there is none'}")

    async def _describe(self, record: ServerRecord) -> tuple[Description, bytes] | str:
        """What a server says of its model, or why it is not told."""
        request, contact = Describe(record.model.fingerprint), (record.peer, record.addresses)
        try:
            reply = await ask(self._dialler, contact, DESCRIBE, request, deadline_s=DESCRIBE_S, clock=self._clock)
        except ShoalError as error:
            return str(error)
        if reply.message.fingerprint != request.fingerprint:
            return f"{record.peer[:8]} describes another model than it was asked for"
        return reply.message, reply.payload
