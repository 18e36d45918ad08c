"""A session's hops and the links between them, kept as they should be while servers come and go.

One task compares what is with what should be and acts on the difference: lost hops are replaced, hops that are not joined
are joined, the same way at the first opening and after any failure (docs/concepts/healing.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import msgspec

from shoal.client.hop import TICK_S, HopControl
from shoal.client.planner import Planner, Terms
from shoal.client.recruiter import Recruiter
from shoal.client.watch import Watch
from shoal.client.wiring import Node, Pair, Wiring
from shoal.clock import Clock
from shoal.errors import CapacityError, NetworkError, NoRoute, NotHeld, SessionFenced, ShoalError
from shoal.net.rowlink import Feed, Inlet
from shoal.types import Span

RETRY_S = 0.5
"""Between two looks for a server while some blocks have none."""

STANDBY_RETRY_S = 5.0
MAX_REPLACEMENTS = 64
"""Hops replaced without a row in between: more is not bad luck but a mistake."""

RESUMED_GENERATIONS = 1 << 24
"""Every time that a session is resumed, its links' generations begin so much higher: above all that were given before."""


class Heal(msgspec.Struct):
    """One repair: why, from when to when (monotonic seconds), which servers went and came, rows sent again to them."""

    reason: str
    began_at: float
    ended_at: float = 0.0
    lost: list[str] = []
    found: list[str] = []
    replayed_rows: int = 0
    missing: str = ""


class Stage:
    """A place in the route: the hop that holds it, and hops that stand by for it."""

    def __init__(self, control: HopControl) -> None:
        self.control = control
        self.standby: list[HopControl] = []
        self.look_again_at = 0.0

    @property
    def ready(self) -> bool:
        """Whether somebody stands by who is alive."""
        return bool(self.standby) and all(control.lost is None for control in self.standby)


class Chain:
    """Keeps `stages` alive and joined, between the client's own `ends` of the row stream."""

    def __init__(self, terms: Terms, planner: Planner, ends: tuple[Feed, Inlet], clock: Clock) -> None:
        self.terms = terms
        self.clock = clock
        self.stages: list[Stage] = []
        self.heals: list[Heal] = []
        self.patience_s = 0.0
        self.stuck: ShoalError | None = None
        self.healing: Heal | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.sender = ends[0].sender
        generations = itertools.count(terms.resumed * RESUMED_GENERATIONS + 1)
        self.recruiter = Recruiter(terms, planner, self.sender, generations, clock)
        self.wiring = Wiring(terms, ends, self.spawn, generations, clock)
        self.watch = Watch(self)
        self._opened = False
        self._replacements = 0
        self._stir = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def exact(self) -> bool:
        """Whether all rows went through arithmetic that gives the same bits."""
        return self.recruiter.exact

    @property
    def controls(self) -> list[HopControl]:
        """The hops that rows go through, in order."""
        return [stage.control for stage in self.stages]

    @property
    def everybody(self) -> Iterator[HopControl]:
        """Those that stand by as well."""
        for stage in self.stages:
            yield from (stage.control, *stage.standby)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in a task that ends with the chain."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def open(self, patience_s: float) -> None:
        """Make a route over the whole span, or make whole what `adopt` has brought.

        Raises NoRoute, or what kept its servers away, after `patience_s`.
        """
        self.patience_s = patience_s
        await self._repair()
        if self.stuck is not None:
            raise self.stuck
        self._opened = True

    def adopt(self, controls: Sequence[HopControl]) -> None:
        """Begin with hops that have the session already; those that do not are `lost`."""
        self._opened = True
        self.recruiter.agree(controls)
        self.stages = [Stage(control) for control in controls]
        for control in controls:
            self._employ(control)
            if control.lost is not None:
                self.recruiter.lose(control)

    def start(self, patience_s: float) -> None:
        """From now on heal in the background, waiting so long for servers of missing blocks."""
        self.patience_s = patience_s
        self.spawn(self._supervise())

    def stir(self) -> None:
        """Something has changed; look."""
        self._stir.set()
        self.on_change()

    def retry(self) -> None:
        """Try again after the patience ran out."""
        if not isinstance(self.stuck, SessionFenced):
            self.stuck = None
            self.stir()

    def progressed(self) -> None:
        """Rows came through."""
        self._replacements = 0

    async def _supervise(self) -> None:
        while True:
            await self._changed()
            if self.stuck is None and (self._lost_run() is not None or self._unwired()):
                await self._repair()
            self._staff()

    async def _changed(self) -> None:
        """Wait until something has, or might have, and judge; while links are made as at any other time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._stir.wait()
        self._stir.clear()
        if self._opened:
            self.watch.look()

    async def _repair(self) -> None:
        """Act until nothing is lost and everything is joined; sets `stuck` when that cannot be."""
        self.healing = heal = Heal(self._reason(), self.clock.monotonic())
        try:
            await self._mend(heal)
        except ShoalError as error:
            self.stuck = error
        finally:
            self.healing = None
        heal.ended_at = self.clock.monotonic()
        if self.stuck is None:
            self.heals.append(heal)
            self.watch.restart()
        self.on_change()

    async def _mend(self, heal: Heal) -> None:
        deadline: float | None = None
        cause: ShoalError | None = None
        asked = False
        while True:
            self._check_fence()
            self._promote_for_lost()
            run = self._lost_run()
            if run is None:
                self.wiring.join(self._unwired(), self.stir)
                if not self.wiring.joining:
                    return
                await self._changed()
                continue
            try:
                cause = await self._replace(run, heal) or cause
            except NoRoute as error:
                if not asked:
                    asked = True  # perhaps there are others, or the same with other blocks
                    await self._ask_for_news()
                    continue
                now = self.clock.monotonic()
                deadline = deadline or now + self.patience_s
                heal.missing = str(error)
                if now >= deadline or not self._worth_waiting(cause):
                    raise self._final(cause, error) from error
                await self._wait_for_servers(deadline)

    def _worth_waiting(self, cause: ShoalError | None) -> bool:
        """At the first opening a server that refuses is an answer; later nothing is lost by waiting for another one."""
        if cause is None or isinstance(cause, NotHeld):
            return True  # nobody has refused; who holds other blocks by now is no answer
        return self._opened and isinstance(cause, NetworkError | CapacityError)

    def _final(self, cause: ShoalError | None, error: NoRoute) -> ShoalError:
        """What kept servers away says more than that there are none, unless they were just out of reach."""
        absent = cause is None or isinstance(cause, NotHeld) or (self._opened and isinstance(cause, NetworkError))
        return error if absent or cause is None else cause

    def _reason(self) -> str:
        reasons = [f"{control.name}: {control.lost}" for control in self.controls if control.lost is not None]
        return "; ".join(reasons) or "joining"

    def _check_fence(self) -> None:
        """Raises SessionFenced when a later process has taken the session up: this one must not go on beside it."""
        for control in self.controls:
            if isinstance(control.lost, SessionFenced):
                raise control.lost

    async def _wait_for_servers(self, deadline: float) -> None:
        self.on_change()
        self.recruiter.forgive()  # perhaps it was not so bad
        await self.clock.sleep(min(RETRY_S, max(0.0, deadline - self.clock.monotonic())))
        await self._ask_for_news()

    async def _ask_for_news(self) -> None:
        with contextlib.suppress(NetworkError):  # whoever waits has a deadline
            await self.recruiter.refresh()

    def _lost_run(self) -> tuple[int, int] | None:
        """The first run of stages without a live hop; the whole route before there is one."""
        if not self.stages:
            return 0, 0
        lost = [index for index, stage in enumerate(self.stages) if stage.control.lost is not None]
        if not lost:
            return None
        stop = lost[0] + 1
        while stop in lost:
            stop += 1
        return lost[0], stop

    async def _replace(self, run: tuple[int, int], heal: Heal) -> ShoalError | None:
        """Open other hops over the blocks of a run; returns what one of them said that refused. Raises NoRoute."""
        first, stop = run
        old = self.stages[first:stop]
        span = Span(old[0].control.hop.span.start, old[-1].control.hop.span.stop) if old else self.terms.span
        for stage in old:
            self._give_up(stage.control)
        controls = await self.recruiter.open(span, self._leaving, frozenset(self.wiring.broken))
        self.recruiter.agree(controls)
        self._count(old)
        live = [control for control in controls if control.lost is None]
        heal.lost += [stage.control.name for stage in old if stage.control.employed]
        heal.found += [control.name for control in live]
        heal.replayed_rows += self.sender.end * len(live)
        for stage in old:
            for control in stage.standby:
                self.spawn(control.close())
        self.stages[first:stop] = [Stage(control) for control in controls]
        for control in live:
            self._employ(control)
        return next((control.lost for control in controls if control.lost is not None), None)

    def _count(self, old: Sequence[Stage]) -> None:
        self._replacements += bool(old)
        if self._replacements > MAX_REPLACEMENTS:
            raise NetworkError(f"{MAX_REPLACEMENTS} hops failed one after another")

    @property
    def _leaving(self) -> frozenset[str]:
        return frozenset(control.peer for control in self.everybody if control.leaving)

    def _employ(self, control: HopControl) -> None:
        if control.lost is None:
            control.notify = self.stir
            control.active = self.watch.active
            control.employed = True
            self.spawn(control.run(self.sender))

    def _give_up(self, control: HopControl) -> None:
        """Not to choose a lost hop again soon, and to have it free its memory if it lives."""
        if control.employed and not control.given_up:
            control.given_up = True
            self.recruiter.lose(control)
            self.spawn(control.release())

    def _promote_for_lost(self) -> None:
        for index, stage in reversed(list(enumerate(self.stages))):
            if stage.control.lost is not None and stage.ready:
                self._give_up(stage.control)
                self.promote(index)

    def promote(self, index: int, keep_old: bool = False) -> None:
        """Those who stand by take a place over; `keep_old`: the one who held it stands by instead."""
        old = self.stages[index]
        if self.healing is not None:
            self.healing.lost.append(old.control.name)
            self.healing.found += [control.name for control in old.standby]
        new = [Stage(control) for control in old.standby]
        if keep_old and len(new) == 1:
            new[0].standby = [old.control]
        elif old.control.lost is None:
            self.spawn(old.control.close())
        self.stages[index : index + 1] = new
        self.stir()

    def pairs(self) -> Iterator[Pair]:
        """Every link that should be."""
        nodes: list[Node] = [None, *self.controls, None]
        for before, after in itertools.pairwise(nodes):
            yield before, after, False
        for before, stage in zip(nodes, self.stages, strict=False):
            if stage.ready:
                yield before, stage.standby[0], True
                for one, other in itertools.pairwise(stage.standby):
                    yield one, other, False

    def _unwired(self) -> list[Pair]:
        return self.wiring.missing(self.pairs())

    def _staff(self) -> None:
        """Have somebody stand by where that was asked for, or where a hop is leaving."""
        now = self.clock.monotonic()
        for stage in self.stages:
            wanted = self.terms.options.redundancy > 1 or stage.control.leaving
            if stage.standby and not stage.ready:
                stage.standby = []
            if wanted and not stage.standby and now >= stage.look_again_at and stage.control.lost is None:
                stage.look_again_at = now + (RETRY_S if stage.control.leaving else STANDBY_RETRY_S)
                self.spawn(self._recruit(stage))

    async def _recruit(self, stage: Stage) -> None:
        """Have hops follow a stage, if servers are there for it."""
        taken = frozenset(control.peer for control in self.everybody)
        try:
            controls = await self.recruiter.open(
                stage.control.hop.span, taken, frozenset(self.wiring.broken), follow=True
            )
        except NoRoute:
            return
        self.recruiter.agree(controls)
        if any(control.lost is not None for control in controls) or stage not in self.stages or stage.standby:
            await asyncio.gather(*(control.close() for control in controls))
            return
        stage.standby = controls
        for control in controls:
            self._employ(control)
        self.stir()

    async def close(self, end: bool = True) -> None:
        """Stop; `end` tells every hop that the session is over. Closing twice is harmless."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.wiring.wires.clear()
        if end:
            await asyncio.gather(*(control.close() for control in self.everybody))
        for control in self.everybody:
            control.detach()
