"""A server's exchanges of records with other members, and whom it believes to be alive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Sequence

from shoal.clock import Clock
from shoal.errors import NetworkError, ShoalError
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.discovery.ticket import Ticket
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import FrameChannel
from shoal.types import ModelSpec, PeerId

EXCHANGE_S = 3.0
"""How often records are exchanged with one random member."""

TOLD_AT_ONCE = 8
"""Members that hear of news at once: a server that leaves, a node that is revoked; the others learn it by exchange."""

ASKED_AT_ONCE = 32
"""Members that are asked before a decision that depends on them."""

Notice = Callable[[str], None]


class Gossip:
    """`tickets` name members that are always known; `notice` hears of those that do not answer."""

    def __init__(
        self,
        me: PeerId,
        directory: Directory,
        dialler: Dialler,
        notice: Notice,
        clock: Clock,
        tickets: Sequence[Ticket] = (),
    ) -> None:
        self.tickets = tuple(tickets)
        self._me = me
        self._directory = directory
        self._dialler = dialler
        self._notice = notice
        self._clock = clock
        self._random = random.Random()
        self._silent: dict[PeerId, int] = {}

    def others(self, model: ModelSpec | None = None) -> list[ServerRecord]:
        """Records of other servers (of one model) that are believed to be alive: they answered when they were last
        asked, or have said something new since."""
        known = [signed.record for signed in self._directory.records()]
        return [
            record
            for record in known
            if record.peer != self._me
            and (model is None or record.model.checkpoint == model.checkpoint)
            and self._silent.get(PeerId(record.peer), -1) < record.sequence
        ]

    async def join(self) -> None:
        """Exchange with the members that the tickets name; those out of reach are tried again later."""
        await asyncio.gather(*(self._try(PeerId(ticket.peer), ticket.addresses) for ticket in self.tickets))

    async def tell_some(self) -> None:
        """Exchange with a few members at once; the others learn it from them."""
        await self._ask_some(self.others(), TOLD_AT_ONCE)

    async def ask(self, model: ModelSpec, peers: Collection[PeerId] | None = None) -> None:
        """Exchange with these servers of a model, or with ASKED_AT_ONCE by chance: who is alive, and what is new?"""
        others = self.others(model)
        if peers is None:
            await self._ask_some(others, ASKED_AT_ONCE)
        else:
            await self._ask_some([one for one in others if one.peer in peers], len(peers))

    async def _ask_some(self, records: Iterable[ServerRecord], count: int) -> None:
        known = list(records)
        some = self._random.sample(known, min(len(known), count))
        await asyncio.gather(*(self._try(PeerId(near.peer), near.addresses) for near in some))

    async def keep(self) -> None:
        """Exchange with somebody now and then, for ever."""
        while True:
            await self._clock.sleep(EXCHANGE_S)
            known = {signed.record.peer: signed.record.addresses for signed in self._directory.records()}
            known.update({ticket.peer: ticket.addresses for ticket in self.tickets if ticket.peer not in known})
            known.pop(self._me, None)
            if known:
                peer = self._random.choice(sorted(known))
                await self._exchange(PeerId(peer), known[peer])

    async def _try(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        error = await self._exchange(peer, addresses)
        if error is not None:
            self._notice(f"{peer[:8]} does not answer: {error}")

    async def _exchange(self, peer: PeerId, addresses: tuple[str, ...]) -> ShoalError | None:
        """What went wrong, if something did."""
        before = self._directory.get(peer)
        try:
            async with FrameChannel(await self._dialler.dial(peer, addresses)) as channel:
                await exchange.ask(channel, self._directory)
        except NetworkError as error:
            if before is not None:
                self._silent[peer] = before.record.sequence
            return error
        except ShoalError as error:
            return error
        self._silent.pop(peer, None)
        return None
