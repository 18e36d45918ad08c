"""A server's exchanges of records with other members, and whom it believes to be alive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Sequence

from shoal.clock import Clock
from shoal.errors import NetworkError, ShoalError
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import ServerRecord, SignedRecord
from shoal.swarm.discovery.ticket import Ticket
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.reach import dialled_for_others
from shoal.types import ModelSpec, PeerId

EXCHANGE_S = 3.0
"""How often records are exchanged with one random member."""

TOLD_AT_ONCE = 8
"""Members that hear of news at once: a server that leaves, a node that is revoked; the others learn it by exchange."""

ASKED_AT_ONCE = 32
"""Members that are asked before a decision that depends on them."""

TICKET_CHANCE = 0.1
"""How often that member is one that a ticket names: no number of strangers takes this node away from those."""

DOUBT_CHANCE = 0.2
"""How often it is one that does not count now, as long as there are such: its record was dropped for its times, or it was
silent and has said something new since."""

Notice = Callable[[str], None]


class Gossip:
    """`tickets` name members that are always known; `notice` hears of those that do not answer.

    `fingerprint` is of this server's model. `own` gives its addresses, which say where it dials because of a record alone.
    """

    def __init__(
        self,
        me: PeerId,
        directory: Directory,
        dialler: Dialler,
        notice: Notice,
        clock: Clock,
        tickets: Sequence[Ticket] = (),
        fingerprint: str = "",
        own: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self.tickets = tuple(tickets)
        self._me = me
        self._directory = directory
        self._dialler = dialler
        self._notice = notice
        self._clock = clock
        self._fingerprint = fingerprint
        self._own = own
        self._random = random.Random()
        self._silent: dict[PeerId, int] = {}

    def others(self, model: ModelSpec | None = None) -> list[ServerRecord]:
        """Records of other servers (of one model) that are believed to be alive."""
        return self._of_model(self._directory.believed(), model)

    def _of_model(self, known: Iterable[SignedRecord], model: ModelSpec | None) -> list[ServerRecord]:
        return [
            signed.record
            for signed in known
            if signed.record.peer != self._me and (model is None or signed.record.model.checkpoint == model.checkpoint)
        ]

    def _unbelieved(self, model: ModelSpec | None) -> list[ServerRecord]:
        """Those that do not count and may be there: others of their source were silent, or they speak again."""
        counted = {record.peer for record in self.others(model)}
        return [
            record
            for record in self._of_model(self._directory.records(), model)
            if record.peer not in counted
            and (
                not self._directory.was_silent(record.peer)
                or self._silent.get(PeerId(record.peer), -1) < record.sequence
            )
        ]

    async def join(self) -> None:
        """Exchange with the members that the tickets name; those out of reach are tried again later."""
        await asyncio.gather(*(self._try(PeerId(ticket.peer), ticket.addresses) for ticket in self.tickets))

    async def tell_some(self) -> None:
        """Exchange with a few members at once; the others learn it from them."""
        await self._ask_some(self.others(), TOLD_AT_ONCE)

    async def ask(self, model: ModelSpec, peers: Collection[PeerId] | None = None) -> None:
        """Exchange with these servers of a model, or with ASKED_AT_ONCE by chance: who is alive, and what is new?

        As many of those that do not count are asked too: one that answers counts.
        """
        others = self.others(model)
        wanted = others if peers is None else [one for one in others if one.peer in peers]
        count = ASKED_AT_ONCE if peers is None else len(peers)
        await asyncio.gather(self._ask_some(wanted, count), self._ask_some(self._unbelieved(model), ASKED_AT_ONCE))

    async def _ask_some(self, records: Iterable[ServerRecord], count: int) -> None:
        some = self._choose(list(records), count)
        await asyncio.gather(*(self._try(PeerId(near.peer), near.addresses) for near in some))

    def _choose(self, records: Sequence[ServerRecord], count: int) -> list[ServerRecord]:
        """Some of these by chance: half of them of those that have answered before, as far as there are as many.

        Of the others each source has the same chance: one that makes up nodes by the thousand has no more of it.
        """
        wanted = {record.peer: record for record in records}
        ranked = [signed.record.peer for signed in self._directory.ranked(by_chance=True)]
        met = [peer for peer in ranked if peer in wanted and self._directory.has_answered(peer)]
        others = [peer for peer in ranked if peer in wanted and not self._directory.has_answered(peer)]
        self._random.shuffle(met)
        share = count - min(len(others), count // 2 + self._random.randrange(2) * (count % 2))
        chosen = [*met[:share], *others][:count]
        return [wanted[peer] for peer in chosen]

    async def keep(self) -> None:
        """Exchange with somebody now and then, for ever; sometimes with a member that a ticket names."""
        while True:
            await self._clock.sleep(EXCHANGE_S)
            known = [signed.record for signed in self._directory.records() if signed.record.peer != self._me]
            some = self._choose(known, 1)
            named = [ticket for ticket in self.tickets if ticket.peer != self._me]
            if named and (not some or self._random.random() < TICKET_CHANCE):
                ticket = self._random.choice(named)
                await self._exchange(PeerId(ticket.peer), self._addresses(ticket))
            elif self._random.random() < DOUBT_CHANCE and (doubtful := self._doubtful()):
                unsure = self._random.choice(doubtful)  # it can say what its clock shows, or that it is there again
                await self._exchange(PeerId(unsure.peer), unsure.addresses)
            elif some:
                await self._exchange(PeerId(some[0].peer), some[0].addresses)

    def _doubtful(self) -> list[ServerRecord]:
        return [*(signed.record for signed in self._directory.doubtful), *self._unbelieved(None)]

    def _addresses(self, ticket: Ticket) -> tuple[str, ...]:
        """Where that member says that it is now; as the ticket has it when it says nothing."""
        signed = self._directory.get(PeerId(ticket.peer))
        return signed.record.addresses if signed is not None else ticket.addresses

    async def _try(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        error = await self._exchange(peer, addresses)
        problem = self._directory.problem(peer)
        if error is not None:
            self._notice(f"{peer[:8]} does not answer: {error}")
        elif problem is not None:
            self._notice(problem)

    async def _exchange(self, peer: PeerId, addresses: tuple[str, ...]) -> ShoalError | None:
        """What went wrong, if something did."""
        before = self._directory.get(peer)
        named = any(ticket.peer == peer for ticket in self.tickets)
        if self._own is not None and not named:
            addresses = dialled_for_others(addresses, self._own())
        try:
            async with FrameChannel(await self._dialler.dial(peer, addresses)) as channel:
                await exchange.ask(channel, self._directory, self._fingerprint)
        except NetworkError as error:
            self._directory.silent(peer)
            if before is not None:
                self._silent[peer] = before.record.sequence
            return error
        except ShoalError as error:
            return error
        self._silent.pop(peer, None)
        return None
