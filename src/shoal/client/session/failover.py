"""Makes a chain whole: servers for hops that are lost, links where there are none, patience where nobody is there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from shoal.client.session.stage import Stage
from shoal.errors import CapacityError, NetworkError, NoRoute, NotHeld, SessionFenced, ShoalError
from shoal.types import Span

if TYPE_CHECKING:
    from shoal.client.session.supervisor import RouteSupervisor

RETRY_S = 0.5
"""Between two looks for a server while some blocks have none."""

MAX_REPLACEMENTS = 64
"""Hops replaced without a row in between: more is not bad luck but a mistake."""


class FailoverEvent(msgspec.Struct):
    """One repair: why, from when to when (monotonic seconds), which servers went and came, rows sent again to them."""

    reason: str
    began_at: float
    ended_at: float = 0.0
    lost: list[str] = []
    found: list[str] = []
    replayed_rows: int = 0
    missing: str = ""


class Failover:
    """Acts on the difference between a chain as it is and as it should be. One `run` at a time."""

    def __init__(self, supervisor: RouteSupervisor) -> None:
        self.replacements = 0
        self._chain = supervisor

    async def run(self) -> None:
        """Act until nothing is lost and everything is joined; sets `stuck` when that cannot be."""
        supervisor = self._chain
        supervisor.failing_over = heal = FailoverEvent(self._reason(), supervisor.clock.monotonic())
        try:
            await self.mend(heal)
        except ShoalError as error:
            supervisor.stuck = error
        finally:
            supervisor.failing_over = None
        heal.ended_at = supervisor.clock.monotonic()
        if supervisor.stuck is None:
            supervisor.failovers.append(heal)
            supervisor.watch.restart()
        supervisor.on_change()

    async def mend(self, heal: FailoverEvent) -> None:
        """The same, noting in `heal` what was done; raises NoRoute, or what kept servers away, SessionFenced."""
        supervisor = self._chain
        deadline: float | None = None
        cause: ShoalError | None = None
        asked = False
        while True:
            self._check_fence()
            supervisor.promote_for_lost()
            run = supervisor.lost_run()
            if run is None:
                supervisor.link_table.join(supervisor.unwired(), supervisor.stir)
                if not supervisor.link_table.joining:
                    return
                await supervisor.changed()
                continue
            try:
                cause = await self._replace(run, heal) or cause
            except NoRoute as error:
                if not asked:
                    asked = True  # perhaps there are others, or the same with other blocks
                    await self._ask_for_news()
                    continue
                now = supervisor.clock.monotonic()
                deadline = deadline or now + supervisor.patience_s
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
        supervisor = self._chain
        supervisor.on_change()
        supervisor.selector.clear()  # perhaps it was not so bad
        await supervisor.clock.sleep(min(RETRY_S, max(0.0, deadline - supervisor.clock.monotonic())))
        await self._ask_for_news()

    async def _ask_for_news(self) -> None:
        with contextlib.suppress(NetworkError):  # whoever waits has a deadline
            await self._chain.selector.refresh()

    async def _replace(self, run: tuple[int, int], heal: FailoverEvent) -> ShoalError | None:
        """Open other hops over the blocks of a run; returns what one of them said that refused. Raises NoRoute."""
        supervisor = self._chain
        first, stop = run
        old = supervisor.stages[first:stop]
        span = Span(old[0].control.hop.span.start, old[-1].control.hop.span.stop) if old else supervisor.terms.span
        for stage in old:
            supervisor.drop(stage.control)
        controls = await supervisor.selector.open(span, supervisor.leaving, frozenset(supervisor.link_table.broken))
        supervisor.selector.agree(controls)
        self._count(old)
        live = [control for control in controls if control.lost is None]
        heal.lost += [stage.control.name for stage in old if stage.control.attached]
        heal.found += [control.name for control in live]
        heal.replayed_rows += supervisor.sender.end * len(live)
        for stage in old:
            for control in stage.standbys:
                supervisor.spawn(control.close())
        supervisor.stages[first:stop] = [Stage(control) for control in controls]
        for control in live:
            supervisor.attach(control)
        return next((control.lost for control in controls if control.lost is not None), None)

    def _count(self, old: Sequence[Stage]) -> None:
        self.replacements += bool(old)
        if self.replacements > MAX_REPLACEMENTS:
            raise NetworkError(f"{MAX_REPLACEMENTS} hops failed one after another")
