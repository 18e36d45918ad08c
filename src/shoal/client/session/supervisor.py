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

from shoal.client.session.failover import Failover, FailoverEvent
from shoal.client.session.failure_detector import FailureDetector
from shoal.client.session.hop_client import TICK_S, HopClient
from shoal.client.session.link_table import LinkTable
from shoal.client.session.planner import Planner, SessionSpec
from shoal.client.session.server_selector import ServerSelector
from shoal.client.session.stage import Stage
from shoal.clock import Clock
from shoal.errors import NoRoute, SessionFenced, ShoalError
from shoal.links.link import Endpoint, LinkKey
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver

LEAVING_RETRY_S = 0.5
STANDBY_RETRY_S = 5.0
"""Between two looks for somebody to follow a hop that is leaving, and one that is not."""

RESUMED_GENERATIONS = 1 << 24
"""Every time that a session is resumed, its links' generations begin so much higher: above all that were given before."""


class RouteSupervisor:
    """Keeps `stages` alive and joined, between the client's own `ends` of the row stream."""

    def __init__(
        self,
        terms: SessionSpec,
        planner: Planner,
        ends: tuple[RowLog, RowReceiver],
        clock: Clock,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.terms = terms
        self.clock = clock
        self.stages: list[Stage] = []
        self.failovers: list[FailoverEvent] = []
        self.patience_s = 0.0
        self.stuck: ShoalError | None = None
        self.failing_over: FailoverEvent | None = None
        self.on_change = on_change
        self.sender = ends[0].sender
        generations = itertools.count(terms.resumed * RESUMED_GENERATIONS + 1)
        self.selector = ServerSelector(terms, planner, self.sender, generations, clock)
        self.link_table = LinkTable(terms, ends, self.spawn, generations, clock)
        self.watch = FailureDetector(self)
        self.failover = Failover(self)
        self.opened = False
        self._stir = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def exact(self) -> bool:
        """Whether all rows went through arithmetic that gives the same bits."""
        return self.selector.exact

    @property
    def controls(self) -> list[HopClient]:
        """The hops that rows go through, in order."""
        return [stage.control for stage in self.stages]

    @property
    def everybody(self) -> Iterator[HopClient]:
        """Those that stand by as well."""
        for stage in self.stages:
            yield from (stage.control, *stage.standbys)

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
        await self.failover.run()
        if self.stuck is not None:
            raise self.stuck
        self.opened = True

    def adopt(self, controls: Sequence[HopClient]) -> None:
        """Begin with hops that have the session already; those that do not are `lost`."""
        self.opened = True
        self.selector.agree(controls)
        self.stages = [Stage(control) for control in controls]
        for control in controls:
            self.attach(control)
            if control.lost is not None:
                self.selector.lose(control)

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
        if self.stuck is not None and not isinstance(self.stuck, SessionFenced):
            self.stuck = None
            self.stir()

    def progressed(self) -> None:
        """Rows came through."""
        self.failover.replacements = 0

    async def _supervise(self) -> None:
        while True:
            await self.changed()
            if self.stuck is None and (self.lost_run() is not None or self.unwired()):
                await self.failover.run()
            self._ensure_standbys()

    async def changed(self) -> None:
        """Wait until something has, or might have, and judge; while links are made as at any other time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._stir.wait()
        self._stir.clear()
        if self.opened:
            self.watch.look()

    def lost_run(self) -> tuple[int, int] | None:
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

    @property
    def leaving(self) -> frozenset[str]:
        """Servers of hops that are on their way out."""
        return frozenset(control.peer for control in self.everybody if control.leaving)

    def attach(self, control: HopClient) -> None:
        """Talk to an open hop from now on."""
        if control.lost is None:
            control.notify = self.stir
            control.heartbeat.active = self.watch.active
            control.attached = True
            self.spawn(control.run(self.sender))

    def drop(self, control: HopClient) -> None:
        """Not to choose a lost hop again soon, and to have it free its memory if it lives."""
        if control.attached and not control.dropped:
            control.dropped = True
            self.selector.lose(control)
            self.spawn(control.release())

    def promote_for_lost(self) -> None:
        """Those who stand by for a lost hop take its place."""
        for index, stage in reversed(list(enumerate(self.stages))):
            if stage.control.lost is not None and stage.ready:
                self.drop(stage.control)
                self.promote(index)

    def promote(self, index: int, keep_old: bool = False) -> None:
        """Those who stand by take a place over; `keep_old`: the one who held it stands by instead."""
        old = self.stages[index]
        if self.failing_over is not None:
            self.failing_over.lost.append(old.control.name)
            self.failing_over.found += [control.name for control in old.standbys]
        new = [Stage(control) for control in old.standbys]
        if keep_old and len(new) == 1:
            new[0].standbys = [old.control]
        elif old.control.lost is None:
            self.spawn(old.control.close())
        self.stages[index : index + 1] = new
        self.stir()

    def pairs(self) -> Iterator[LinkKey[HopClient]]:
        """Every link that should be."""
        nodes: list[Endpoint[HopClient]] = [None, *self.controls, None]
        for before, after in itertools.pairwise(nodes):
            yield LinkKey(before, after)
        for before, stage in zip(nodes, self.stages, strict=False):
            if stage.ready:
                yield LinkKey(before, stage.standbys[0], follows=True)
                for one, other in itertools.pairwise(stage.standbys):
                    yield LinkKey(one, other)

    def unwired(self) -> list[LinkKey[HopClient]]:
        """Links that should be and are not under way; others are cut."""
        return self.link_table.missing(self.pairs())

    def _ensure_standbys(self) -> None:
        """Have somebody stand by where that was asked for, or where a hop is leaving."""
        now = self.clock.monotonic()
        for stage in self.stages:
            wanted = self.terms.options.redundancy > 1 or stage.control.leaving
            if stage.standbys and not stage.ready:
                stage.standbys = []
            if wanted and not stage.standbys and now >= stage.look_again_at and stage.control.lost is None:
                stage.look_again_at = now + (LEAVING_RETRY_S if stage.control.leaving else STANDBY_RETRY_S)
                self.spawn(self._recruit(stage))

    async def _recruit(self, stage: Stage) -> None:
        """Have hops follow a stage, if servers are there for it."""
        taken = frozenset(control.peer for control in self.everybody)
        try:
            controls = await self.selector.open(
                stage.control.hop.span, taken, frozenset(self.link_table.broken), follow=True
            )
        except NoRoute:
            return
        self.selector.agree(controls)
        if any(control.lost is not None for control in controls) or stage not in self.stages or stage.standbys:
            await asyncio.gather(*(control.close() for control in controls))
            return
        stage.standbys = controls
        for control in controls:
            self.attach(control)
        self.stir()

    async def close(self, end: bool = True) -> None:
        """Stop; `end` tells every hop that the session is over. Closing twice is harmless."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.link_table.links_up.clear()
        if end:
            await asyncio.gather(*(control.close() for control in self.everybody))
        for control in self.everybody:
            control.detach()
