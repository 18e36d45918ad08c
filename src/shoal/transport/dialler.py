"""Dialling: race a peer's addresses, TLS first, and keep the one that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import DialError, IdentityError, ShoalError
from shoal.tasks import OwnedTasks
from shoal.transport.channel import Channel, Transport
from shoal.types import PeerId

DIAL_DEADLINE_S = 1.5

TLS_HEAD_START_S = 0.25
"""How long other transports wait for TLS: it is the fastest once it is up, so it should win a close race."""

STAGGER_S = 0.05
"""Between two addresses of one transport."""

MAX_ADDRESSES = 8
"""Addresses tried in one dial; a record could name more."""

MAX_REMEMBERED = 10_000
"""Peers whose last address is known."""

Plan = tuple[Transport, str, float]
"""Which transport dials which address after how many seconds."""


class Dialler:
    """Opens channels to peers over a node's transports; `only` forces one of them."""

    def __init__(
        self,
        transports: Sequence[Transport],
        clock: Clock = SYSTEM_CLOCK,
        only: str | None = None,
        head_start_s: float = TLS_HEAD_START_S,
    ) -> None:
        self._transports = {transport.name: transport for transport in transports if only in (None, transport.name)}
        self._clock = clock
        self._head_start_s = head_start_s
        self._answered: dict[PeerId, str] = {}

    def narrowed(self, peer: PeerId, addresses: Sequence[str]) -> Sequence[str]:
        """Only the address at which this peer answered last, if it is among these: enough to see whether it is still there."""
        last = self._answered.get(peer)
        return (last,) if last is not None and last in addresses else addresses

    async def dial(self, peer: PeerId, addresses: Sequence[str], deadline_s: float = DIAL_DEADLINE_S) -> Channel:
        """A channel to `peer` at the first address that answers; the other attempts are dropped.

        Addresses of transports that this side lacks are skipped, and those after the first MAX_ADDRESSES.
        Raises DialError with every address and its cause, or IdentityError when some other node answered at all of them.
        """
        plans = self._plans(addresses)
        if not plans:
            raise DialError(f"{peer[:8]} has no address that this side can dial ({', '.join(addresses) or 'none'})")
        race = _Race(peer, plans, self._clock)
        winner = await race.run(deadline_s)
        if winner is not None:
            if len(self._answered) >= MAX_REMEMBERED:
                self._answered.clear()
            self._answered[peer] = race.answered
            return winner
        self._answered.pop(peer, None)
        errors = race.errors
        if len(errors) == len(plans) and all(isinstance(error, IdentityError) for error in errors.values()):
            raise IdentityError("; ".join(map(str, errors.values())))
        silent = f"no answer within {deadline_s:g} s"
        causes = "; ".join(_cause(plan[1], str(errors.get(plan[1], silent))) for plan in plans)
        raise DialError(f"{peer[:8]} cannot be reached: {causes}")

    def _plans(self, addresses: Sequence[str]) -> list[Plan]:
        known = [address for address in dict.fromkeys(addresses) if _scheme(address) in self._transports]
        known = known[:MAX_ADDRESSES]
        has_tls = any(_scheme(address) == "tls" for address in known)
        plans: list[Plan] = []
        for address in known:
            transport = self._transports[_scheme(address)]
            head_start_s = self._head_start_s if has_tls and transport.name != "tls" else 0.0
            before = sum(plan[0] is transport for plan in plans)
            plans.append((transport, address, head_start_s + STAGGER_S * before))
        return plans


class _Race:
    """One dial: attempts begin when their time has come, or at once when no other is left."""

    def __init__(self, peer: PeerId, plans: list[Plan], clock: Clock) -> None:
        self.errors: dict[str, ShoalError] = {}
        self.answered = ""
        self._peer = peer
        self._clock = clock
        self._waiting = sorted(plans, key=lambda plan: plan[2])
        self._active: dict[asyncio.Task[Channel | ShoalError], str] = {}

    async def run(self, deadline_s: float) -> Channel | None:
        """The channel of the first attempt that succeeds; None when all have failed or the deadline has come."""
        winner = None
        try:
            async with OwnedTasks() as tasks:
                winner = await self._compete(tasks, deadline_s)
        except BaseException:
            if winner is not None:
                winner.abort()
            raise
        finally:
            _abort(self._active)
        return winner

    async def _compete(self, tasks: OwnedTasks, deadline_s: float) -> Channel | None:
        began = self._clock.monotonic()
        while self._waiting or self._active:
            passed_s = self._clock.monotonic() - began
            if passed_s >= deadline_s:
                break
            self._start(tasks, passed_s)
            next_s = min([deadline_s, *(plan[2] for plan in self._waiting)])
            timer = tasks.start(self._clock.sleep(next_s - passed_s))
            await asyncio.wait([timer, *self._active], return_when=asyncio.FIRST_COMPLETED)
            timer.cancel()
            winner = self._finished()
            if winner is not None:
                return winner
        return None

    def _start(self, tasks: OwnedTasks, passed_s: float) -> None:
        while self._waiting and (not self._active or self._waiting[0][2] <= passed_s):
            transport, address, _ = self._waiting.pop(0)
            self._active[tasks.start(_attempt(transport, self._peer, address))] = address

    def _finished(self) -> Channel | None:
        for attempt in [attempt for attempt in self._active if attempt.done()]:
            result, address = attempt.result(), self._active.pop(attempt)
            if not isinstance(result, ShoalError):
                self.answered = address
                return result
            self.errors[address] = result
        return None


async def _attempt(transport: Transport, peer: PeerId, address: str) -> Channel | ShoalError:
    try:
        return await transport.dial(peer, address)
    except ShoalError as error:
        return error


def _abort(attempts: Iterable[asyncio.Task[Channel | ShoalError]]) -> None:
    """End the channels of attempts that succeeded too late."""
    for attempt in attempts:
        if attempt.done() and not attempt.cancelled() and attempt.exception() is None:
            channel = attempt.result()
            if not isinstance(channel, ShoalError):
                channel.abort()


def _cause(address: str, text: str) -> str:
    """What was wrong at an address, which is named once."""
    return text if address in text else f"{address}: {text}"


def _scheme(address: str) -> str:
    return address.partition("://")[0]
