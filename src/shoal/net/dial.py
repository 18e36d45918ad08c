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
"""How long iroh waits for TLS: TLS is faster once it is up, so it deserves to win a close race."""

STAGGER_S = 0.05
"""Between two addresses of one transport."""

MAX_ADDRESSES = 8


class Dialler:
    """Opens channels to peers over a node's transports; `only` forces one of them."""

    def __init__(self, transports: Sequence[Transport], clock: Clock = SYSTEM_CLOCK, only: str | None = None) -> None:
        self._transports = {transport.name: transport for transport in transports if only in (None, transport.name)}
        self._clock = clock

    async def dial(self, peer: PeerId, addresses: Sequence[str], deadline_s: float = DIAL_DEADLINE_S) -> Channel:
        """A channel to `peer` at the first address that answers; the other attempts are dropped.

        Raises DialError with every address and its cause, or IdentityError when some other node answered at all of them.
        """
        plans = self._plans(addresses)
        if not plans:
            raise DialError(f"{peer[:8]} has no address that this side can dial ({', '.join(addresses) or 'none'})")
        attempts = [asyncio.ensure_future(self._attempt(peer, *plan)) for plan in plans]
        try:
            async with asyncio.timeout(deadline_s):
                return await self._first(peer, attempts)
        except TimeoutError as error:
            where = ", ".join(plan[1] for plan in plans)
            raise DialError(f"{peer[:8]} did not answer within {deadline_s:.1f} s at {where}") from error
        finally:
            await _drop(attempts)

    def _plans(self, addresses: Sequence[str]) -> list[tuple[Transport, str, float]]:
        """Which transport dials which address after how many seconds."""
        plans: list[tuple[Transport, str, float]] = []
        has_tls = any(address.startswith("tls://") for address in addresses) and "tls" in self._transports
        count: dict[str, int] = {}
        for address in addresses[:MAX_ADDRESSES]:
            name = address.partition("://")[0]
            if name in self._transports:
                head_start_s = TLS_HEAD_START_S if has_tls and name != "tls" else 0.0
                plans.append((self._transports[name], address, head_start_s + STAGGER_S * count.get(name, 0)))
                count[name] = count.get(name, 0) + 1
        return plans

    async def _attempt(self, peer: PeerId, transport: Transport, address: str, delay_s: float) -> Channel:
        if delay_s:
            await self._clock.sleep(delay_s)
        return await transport.dial(peer, address)

    async def _first(self, peer: PeerId, attempts: list[asyncio.Task[Channel]]) -> Channel:
        errors: list[ShoalError] = []
        pending = set(attempts)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            winner = None
            for attempt in done:
                error = attempt.exception()
                if error is None:
                    winner = winner or attempt
                elif isinstance(error, ShoalError):
                    errors.append(error)
                else:
                    raise error
            if winner is not None:
                attempts.remove(winner)
                return winner.result()
        if all(isinstance(error, IdentityError) for error in errors):
            raise IdentityError("; ".join(map(str, errors)))
        raise DialError(f"{peer[:8]} cannot be reached: {'; '.join(map(str, errors))}")


async def _drop(attempts: list[asyncio.Task[Channel]]) -> None:
    """Cancel attempts, and end the channels of those that succeeded too late."""
    for attempt in attempts:
        attempt.cancel()
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if not isinstance(result, BaseException):
            result.abort()
