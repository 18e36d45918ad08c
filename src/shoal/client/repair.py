"""Makes a chain whole: servers for hops that are lost, links where there are none, patience where nobody is there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from shoal.client.stage import Stage
from shoal.errors import CapacityError, NetworkError, NoRoute, NotHeld, SessionFenced, ShoalError
from shoal.types import Span

if TYPE_CHECKING:
    from shoal.client.chain import Chain

RETRY_S = 0.5
"""Between two looks for a server while some blocks have none."""

MAX_REPLACEMENTS = 64
"""Hops replaced without a row in between: more is not bad luck but a mistake."""


class Heal(msgspec.Struct):
    """One repair: why, from when to when (monotonic seconds), which servers went and came, rows sent again to them."""

    reason: str
    began_at: float
    ended_at: float = 0.0
    lost: list[str] = []
    found: list[str] = []
    replayed_rows: int = 0
    missing: str = ""


class Repair:
    """Acts on the difference between a chain as it is and as it should be. One `run` at a time."""

    def __init__(self, chain: Chain) -> None:
        self.replacements = 0
        self._chain = chain

    async def run(self) -> None:
        """Act until nothing is lost and everything is joined; sets `stuck` when that cannot be."""
        chain = self._chain
        chain.healing = heal = Heal(self._reason(), chain.clock.monotonic())
        try:
            await self.mend(heal)
        except ShoalError as error:
            chain.stuck = error
        finally:
            chain.healing = None
        heal.ended_at = chain.clock.monotonic()
        if chain.stuck is None:
            chain.heals.append(heal)
            chain.watch.restart()
        chain.on_change()

    async def mend(self, heal: Heal) -> None:
        """The same, noting in `heal` what was done; raises NoRoute, or what kept servers away, SessionFenced."""
        chain = self._chain
        deadline: float | None = None
        cause: ShoalError | None = None
        asked = False
        while True:
            self._check_fence()
            chain.promote_for_lost()
            run = chain.lost_run()
            if run is None:
                chain.wiring.join(chain.unwired(), chain.stir)
                if not chain.wiring.joining:
                    return
                await chain.changed()
                continue
            try:
                cause = await self._replace(run, heal) or cause
            except NoRoute as error:
                if not asked:
                    asked = True  # perhaps there are others, or the same with other blocks
                    await self._ask_for_news()
                    continue
                now = chain.clock.monotonic()
                deadline = deadline or now + chain.patience_s
                heal.missing = str(error)
                if now >= deadline or not self._worth_waiting(cause):
                    raise self._final(cause, error) from error
                await self._wait_for_servers(deadline)

    def _worth_waiting(self, cause: ShoalError | None) -> bool:
        """At the first opening a server that refuses is an answer; later nothing is lost by waiting for another one."""
        if cause is None or isinstance(cause, NotHeld):
            return True  # nobody has refused; who holds other blocks by now is no answer
        return self._chain.opened and isinstance(cause, NetworkError | CapacityError)

    def _final(self, cause: ShoalError | None, error: NoRoute) -> ShoalError:
        """What kept servers away says more than that there are none, unless they were just out of reach."""
        absent = cause is None or isinstance(cause, NotHeld) or (self._chain.opened and isinstance(cause, NetworkError))
        return error if absent or cause is None else cause

    def _reason(self) -> str:
        reasons = [f"{control.name}: {control.lost}" for control in self._chain.controls if control.lost is not None]
        return "; ".join(reasons) or "joining"

    def _check_fence(self) -> None:
        """Raises SessionFenced when a later process has taken the session up: this one must not go on beside it."""
        for control in self._chain.controls:
            if isinstance(control.lost, SessionFenced):
                raise control.lost

    async def _wait_for_servers(self, deadline: float) -> None:
        chain = self._chain
        chain.on_change()
        chain.recruiter.forgive()  # perhaps it was not so bad
        await chain.clock.sleep(min(RETRY_S, max(0.0, deadline - chain.clock.monotonic())))
        await self._ask_for_news()

    async def _ask_for_news(self) -> None:
        with contextlib.suppress(NetworkError):  # whoever waits has a deadline
            await self._chain.recruiter.refresh()

    async def _replace(self, run: tuple[int, int], heal: Heal) -> ShoalError | None:
        """Open other hops over the blocks of a run; returns what one of them said that refused. Raises NoRoute."""
        chain = self._chain
        first, stop = run
        old = chain.stages[first:stop]
        span = Span(old[0].control.hop.span.start, old[-1].control.hop.span.stop) if old else chain.terms.span
        for stage in old:
            chain.give_up(stage.control)
        controls = await chain.recruiter.open(span, chain.leaving, frozenset(chain.wiring.broken))
        chain.recruiter.agree(controls)
        self._count(old)
        live = [control for control in controls if control.lost is None]
        heal.lost += [stage.control.name for stage in old if stage.control.employed]
        heal.found += [control.name for control in live]
        heal.replayed_rows += chain.sender.end * len(live)
        for stage in old:
            for control in stage.standby:
                chain.spawn(control.close())
        chain.stages[first:stop] = [Stage(control) for control in controls]
        for control in live:
            chain.employ(control)
        return next((control.lost for control in controls if control.lost is not None), None)

    def _count(self, old: Sequence[Stage]) -> None:
        self.replacements += bool(old)
        if self.replacements > MAX_REPLACEMENTS:
            raise NetworkError(f"{MAX_REPLACEMENTS} hops failed one after another")
