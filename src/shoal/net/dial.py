"""Dialling: race a peer's addresses, TLS first, and keep the one that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import DialError, IdentityError, ShoalError
from shoal.net.transport import Channel, Transport
from shoal.types import PeerId

DIAL_DEADLINE_S = 1.5

TLS_HEAD_START_S = 0.25
"""How long other transports wait for TLS: it is the fastest once it is up, so it should win a close race."""

STAGGER_S = 0.05
"""Between two addresses of one transport."""

MAX_ADDRESSES = 8
"""Addresses tried in one dial; a record could name more."""

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

    async def dial(self, peer: PeerId, addresses: Sequence[str], deadline_s: float = DIAL_DEADLINE_S) -> Channel:
        """A channel to `peer` at the first address that answers; the other attempts are dropped.

        Addresses of transports that this side lacks are skipped, and those after the first MAX_ADDRESSES.
        Raises DialError with every address and its cause, or IdentityError when some other node answered at all of them.
        """
        plans = self._plans(addresses)
        if not plans:
            raise DialError(f"{peer[:8]} has no address that this side can dial ({', '.join(addresses) or 'none'})")
        attempts = {asyncio.create_task(self._attempt(peer, plan)): plan[1] for plan in plans}
        deadline = asyncio.create_task(self._clock.sleep(deadline_s))
        errors: dict[str, ShoalError] = {}
        try:
            winner = await _first(attempts, deadline, errors)
            if winner is not None:
                return winner
        finally:
            await _drop([deadline, *attempts])
        if errors and len(errors) == len(plans) and all(isinstance(error, IdentityError) for error in errors.values()):
            raise IdentityError("; ".join(map(str, errors.values())))
        silent = f"no answer within {deadline_s:g} s"
        causes = "; ".join(f"{plan[1]}: {errors.get(plan[1], silent)}" for plan in plans)
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

    async def _attempt(self, peer: PeerId, plan: Plan) -> Channel:
        transport, address, delay_s = plan
        if delay_s:
            await self._clock.sleep(delay_s)
        return await transport.dial(peer, address)


def _scheme(address: str) -> str:
    return address.partition("://")[0]


async def _first(
    attempts: dict[asyncio.Task[Channel], str], deadline: asyncio.Task[None], errors: dict[str, ShoalError]
) -> Channel | None:
    """The first attempt that succeeds, taken out of `attempts`; None when all have failed or the deadline has come."""
    pending = set(attempts)
    while pending and not deadline.done():
        await asyncio.wait([deadline, *pending], return_when=asyncio.FIRST_COMPLETED)
        for attempt in [attempt for attempt in attempts if attempt in pending and attempt.done()]:
            pending.discard(attempt)
            error = attempt.exception()
            if error is None:
                del attempts[attempt]
                return attempt.result()
            if not isinstance(error, ShoalError):
                raise error
            errors[attempts[attempt]] = error
    return None


async def _drop(tasks: Sequence[asyncio.Task[Channel] | asyncio.Task[None]]) -> None:
    """Cancel attempts, and end the channels of those that succeeded too late."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if result is not None and not isinstance(result, BaseException):
            result.abort()
