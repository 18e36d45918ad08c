"""A session's hops and the links between them, kept as they should be while servers come and go.

One task compares what is with what should be and acts on the difference: lost hops are replaced, hops that are not joined
are joined, the same way at the first opening and after any failure (docs/concepts/healing.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from shoal.client.endlink import Bridge, keep_receiving, keep_sending
from shoal.client.hop import TICK_S, HopControl, SessionKeys
from shoal.client.watch import Watch
from shoal.clock import Clock
from shoal.errors import CapacityError, NetworkError, NoRoute, ShoalError
from shoal.net.dial import Dialler
from shoal.net.rowlink import Feed, Inlet
from shoal.swarm.records import SignedRecord
from shoal.types import Hop, ModelSpec, PeerId, Span
from shoal.wire.messages import SECRET_BYTES, LinkGrant, Open, Redirect, RowCodec

AVOID_S = 10.0
"""How long a hop that was lost is not chosen again while others cover its blocks."""

RETRY_S = 0.5
"""Between two looks for a server while some blocks have none."""

STANDBY_RETRY_S = 5.0
MAX_REPLACEMENTS = 64
"""Hops replaced without a row in between: more is not bad luck but a mistake."""


class Wish(msgspec.Struct, frozen=True):
    """What a route must heed: servers to avoid, pairs that cannot reach each other, tokens, equal arithmetic."""

    num_tokens: int
    avoid: frozenset[str] = frozenset()
    broken: frozenset[tuple[str, str]] = frozenset()
    numerics: str | None = None


class Planner(Protocol):
    """Where routes come from."""

    @property
    def dialler(self) -> Dialler:
        """How servers are reached."""
        ...

    def route(self, model: ModelSpec, span: Span, wish: Wish) -> list[tuple[Hop, SignedRecord]]:
        """Hops over a span; raises NoRoute."""
        ...

    async def refresh(self) -> None:
        """Ask the swarm for news; raises NetworkError when nobody answers."""
        ...

    def failed(self, peer: PeerId) -> None:
        """A server that did not answer: not to be chosen until it says something new."""
        ...


class Terms(msgspec.Struct, frozen=True):
    """What every hop of a session is asked for."""

    model: ModelSpec
    span: Span
    me: PeerId
    max_tokens: int
    lease_s: float
    row_codec: RowCodec
    row_bytes: int
    exact: bool
    redundancy: int


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


class Wire:
    """A link as it was ordered, with this side's tasks for it."""

    def __init__(self, generation: int, since: float) -> None:
        self.generation = generation
        self.since = since
        self.tasks: list[asyncio.Task[None]] = []
        self.bridged = False

    def cut(self) -> None:
        """End this side's part."""
        for task in self.tasks:
            task.cancel()


Node = HopControl | None
"""A hop, or (None) the client."""

Pair = tuple[Node, Node, bool]
"""From, to, and whether the one who receives only follows."""


class Chain:
    """Keeps `stages` alive and joined. `feed` is the client's end towards the first hop, `inlet` that from the last."""

    def __init__(self, terms: Terms, planner: Planner, feed: Feed, inlet: Inlet, clock: Clock) -> None:
        self.terms = terms
        self.stages: list[Stage] = []
        self.heals: list[Heal] = []
        self.exact = True
        self.patience_s = 0.0
        self.stuck: ShoalError | None = None
        self.healing: Heal | None = None
        self.broken: dict[tuple[str, str], float] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.feed, self.inlet, self.clock = feed, inlet, clock
        self.wires: dict[Pair, Wire] = {}
        self.watch = Watch(self)
        self._planner = planner
        self._reference: dict[int, tuple[str, str]] = {}
        self._avoid: dict[str, float] = {}
        self._generation = 0
        self._replacements = 0
        self._stir = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

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
        """Make a route over the whole span.

        Raises NoRoute, or what kept its servers away, after `patience_s`.
        """
        self.patience_s = patience_s
        await self._repair()
        if self.stuck is not None:
            raise self.stuck

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
        self.stuck = None
        self.stir()

    def progressed(self) -> None:
        """Rows came through."""
        self._replacements = 0

    async def _supervise(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._stir.wait()
            self._stir.clear()
            self.watch.look()
            if self.stuck is None and (self._lost_run() is not None or self._unwired()):
                await self._repair()
            self._staff()

    async def _repair(self) -> None:
        """Act until nothing is lost and everything is joined; sets `stuck` when that cannot be."""
        self.healing = heal = Heal(self._reason(), self.clock.monotonic())
        deadline: float | None = None
        last: ShoalError | None = None
        try:
            while True:
                self._promote_for_lost()
                run = self._lost_run()
                if run is None:
                    if not self._unwired():
                        break
                    await self._join()
                    continue
                try:
                    await self._replace(run, heal)
                    deadline = None
                except ShoalError as error:
                    last = self._cause(error, last)
                    deadline = deadline or self.clock.monotonic() + self.patience_s
                    heal.missing = str(error)
                    worth_waiting = isinstance(
                        error, NoRoute | NetworkError | CapacityError if self.stages else NoRoute
                    )
                    if not worth_waiting or self.clock.monotonic() >= deadline:
                        raise last from error
                    await self._wait_for_servers(deadline)
        except ShoalError as error:
            self.stuck = error
        finally:
            self.healing = None
        heal.ended_at = self.clock.monotonic()
        if self.stuck is None:
            self.heals.append(heal)
            self.watch.restart()
        self.on_change()

    @staticmethod
    def _cause(error: ShoalError, last: ShoalError | None) -> ShoalError:
        """A server that was full says more than that no other is left."""
        return last if isinstance(error, NoRoute) and last is not None and not isinstance(last, NoRoute) else error

    def _reason(self) -> str:
        reasons = [f"{control.name}: {control.lost}" for control in self.controls if control.lost is not None]
        return "; ".join(reasons) or "joining"

    async def _wait_for_servers(self, deadline: float) -> None:
        self.on_change()
        self._avoid.clear()  # perhaps it was not so bad; those out of reach are known to the planner
        await self.clock.sleep(min(RETRY_S, max(0.0, deadline - self.clock.monotonic())))
        with contextlib.suppress(NetworkError):  # the deadline decides
            await self._planner.refresh()

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

    async def _replace(self, run: tuple[int, int], heal: Heal) -> None:
        """Open other hops over the blocks of a run. Raises NoRoute, or what a server said that nobody can replace."""
        first, stop = run
        old = self.stages[first:stop]
        span = Span(old[0].control.hop.span.start, old[-1].control.hop.span.stop) if old else self.terms.span
        for stage in old:
            if stage.control.peer not in self._avoid:
                self._give_up(stage.control)
        cause: ShoalError | None = None
        while True:
            try:
                route = self._route(span)
            except NoRoute as error:
                raise cause or error from error
            controls = [self._control(hop, record) for hop, record in route]
            self._replacements += bool(old)
            if self._replacements > MAX_REPLACEMENTS:
                raise cause or NetworkError(f"blocks {span}: {MAX_REPLACEMENTS} hops failed one after another")
            results = await asyncio.gather(*(self._open(control) for control in controls), return_exceptions=True)
            problems = [result for result in results if isinstance(result, BaseException)]
            for problem in problems:
                if not isinstance(problem, ShoalError) or problem.peer is None:
                    raise problem
                cause = problem
                self._avoid[problem.peer] = self.clock.monotonic()
                if isinstance(problem, NetworkError):
                    self._planner.failed(PeerId(problem.peer))
            if not problems and self._agree(controls):
                break
            for control in controls:
                self.spawn(control.close())
        heal.lost += [stage.control.name for stage in old]
        heal.found += [control.name for control in controls]
        heal.replayed_rows += self.feed.sender.end * len(controls)
        for stage in old:
            for control in stage.standby:
                self.spawn(control.close())
        self.stages[first:stop] = [Stage(control) for control in controls]
        for control in controls:
            self._employ(control)

    def _employ(self, control: HopControl) -> None:
        control.notify = self.stir
        control.active = self.watch.active
        self.spawn(control.run(self.feed.sender))

    def _route(self, span: Span) -> list[tuple[Hop, SignedRecord]]:
        now = self.clock.monotonic()
        self._avoid = {peer: at for peer, at in self._avoid.items() if now - at < AVOID_S}
        leaving = {control.peer for control in self.everybody if control.leaving}
        avoid, broken = frozenset(self._avoid) | leaving, frozenset(self.broken)
        keys = {self._reference[block][0] for block in span.blocks() if block in self._reference}
        wish = Wish(self.terms.max_tokens, avoid, broken)
        if len(keys) == 1:
            try:
                return self._planner.route(
                    self.terms.model, span, msgspec.structs.replace(wish, numerics=next(iter(keys)))
                )
            except NoRoute:
                if self.terms.exact:
                    raise
        return self._planner.route(self.terms.model, span, wish)

    def _control(self, hop: Hop, record: SignedRecord) -> HopControl:
        return HopControl(hop, record, SessionKeys.draw(), self._planner.dialler, self.clock)

    async def _open(self, control: HopControl, follow: bool = False, upstream: PeerId | None = None) -> None:
        terms, keys = self.terms, control.keys
        self._generation += 1
        request = Open(
            keys.session,
            keys.incarnation,
            keys.secret,
            terms.model.fingerprint,
            control.hop.span,
            terms.max_tokens,
            LinkGrant(self._generation, upstream or terms.me, secrets.token_bytes(SECRET_BYTES)),
            terms.lease_s,
            terms.row_codec,
            follow,
        )
        await control.open(request, self.feed.sender)

    def _agree(self, controls: Sequence[HopControl]) -> bool:
        """Whether these hops may be used; notes the first hops' arithmetic, and where others' differs."""
        fresh = self.feed.sender.end == 0
        same = True
        for control in controls:
            assert control.numerics is not None
            if self.terms.exact and not control.numerics.exact:
                self._avoid[control.peer] = self.clock.monotonic()
                return False
            for block, weights in zip(control.hop.span.blocks(), control.weights, strict=True):
                mine = (control.numerics.key, weights)
                known = mine if fresh else self._reference.setdefault(block, mine)
                self._reference[block] = known
                if known != mine:
                    same = False
                    if self.terms.exact:
                        self._avoid[control.peer] = self.clock.monotonic()
            same = same and control.numerics.exact
        if not same and self.terms.exact:
            return False
        self.exact = self.exact and same
        return True

    def _give_up(self, control: HopControl) -> None:
        """Never use a lost hop again soon, and have it free its memory if it lives."""
        if isinstance(control.lost, NetworkError):
            self._avoid[control.peer] = self.clock.monotonic()
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
        wanted = list(self.pairs())
        for pair in [pair for pair in self.wires if pair not in wanted]:
            self.cut(pair)
        return [pair for pair in wanted if pair not in self.wires]

    def cut(self, pair: Pair) -> None:
        """Forget a link; it is made anew if it is still wanted."""
        wire = self.wires.pop(pair, None)
        if wire is not None:
            wire.cut()

    async def _join(self) -> None:
        results = await asyncio.gather(*(self._wire(pair) for pair in self._unwired()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ShoalError):
                raise result

    async def _wire(self, pair: Pair) -> None:
        """Join two nodes; raises what made one of them fail, which is then `lost`."""
        before, after, follow = pair
        bridged = before is not None and after is not None and (before.peer, after.peer) in self.broken
        upstream = before.peer if before is not None and not bridged else self.terms.me
        grant = self._grant(after, upstream)
        wire = Wire(grant.generation, self.clock.monotonic())
        wire.bridged = bridged
        acceptance = b""
        if after is not None:
            acceptance = await after.admit(grant)
        if before is not None:
            await before.redirect(self._order(grant, after, acceptance, follow, bridged))
        if bridged and before is not None and after is not None:
            self._carry(wire, before, after, grant)
        elif before is None and after is not None:
            outlet = self.feed.follower if follow else self.feed.next
            wire.tasks.append(self.spawn(keep_sending(after, grant, outlet)))
        elif before is not None and after is None:
            limit = self.terms.max_tokens * self.terms.row_bytes
            wire.tasks.append(self.spawn(keep_receiving(before, grant, self.inlet, limit)))
        self.wires[pair] = wire

    def _grant(self, after: Node, upstream: PeerId) -> LinkGrant:
        first = after.first_grant[0] if after is not None and after.first_grant is not None else None
        if after is not None and first is not None:
            if first.peer == upstream:
                return first
            after.first_grant = None
        self._generation += 1
        peer = upstream if after is not None else self.terms.me
        return LinkGrant(self._generation, peer, secrets.token_bytes(SECRET_BYTES))

    def _order(self, grant: LinkGrant, after: Node, acceptance: bytes, follow: bool, bridged: bool) -> Redirect:
        """What the sending hop is told."""
        if after is None or bridged:
            return Redirect(LinkGrant(grant.generation, self.terms.me, grant.token), elide=after is None, follow=follow)
        link = LinkGrant(grant.generation, after.peer, grant.token)
        return Redirect(link, after.record.data, acceptance, follow=follow)

    def _carry(self, wire: Wire, before: HopControl, after: HopControl, grant: LinkGrant) -> None:
        bridge = Bridge(self.terms.row_bytes, after.progress.epoch, after.progress.position)
        limit = self.terms.max_tokens * self.terms.row_bytes
        wire.tasks.append(self.spawn(keep_receiving(before, grant, bridge.inlet, limit)))
        wire.tasks.append(self.spawn(keep_sending(after, grant, bridge.feed.next)))

    def _staff(self) -> None:
        """Have somebody stand by where that was asked for, or where a hop is leaving."""
        now = self.clock.monotonic()
        for stage in self.stages:
            wanted = self.terms.redundancy > 1 or stage.control.leaving
            if stage.standby and not stage.ready:
                stage.standby = []
            if wanted and not stage.standby and now >= stage.look_again_at and stage.control.lost is None:
                stage.look_again_at = now + (RETRY_S if stage.control.leaving else STANDBY_RETRY_S)
                self.spawn(self._recruit(stage))

    async def _recruit(self, stage: Stage) -> None:
        taken = {str(control.peer): self.clock.monotonic() for control in self.everybody}
        held, self._avoid = self._avoid, {**self._avoid, **taken}
        try:
            route = self._route(stage.control.hop.span)
        except NoRoute:
            return
        finally:
            self._avoid = held
        controls = [self._control(hop, record) for hop, record in route]
        results = await asyncio.gather(*(self._open(one, follow=True) for one in controls), return_exceptions=True)
        agreed = not any(isinstance(result, BaseException) for result in results) and self._agree(controls)
        if not agreed or stage not in self.stages or stage.standby:
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
        self.wires.clear()
        if end:
            await asyncio.gather(*(control.close() for control in self.everybody))
        for control in self.everybody:
            control.detach()
