"""A session's hops and the links between them, kept as they should be while servers come and go.

One task observes what there is, has `failover.decide` judge it, and does what that says: the same way at the first opening
as after any failure (docs/concepts/healing.md). It is the only writer of the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from shoal.client.client_options import ROUTE_WAIT_S
from shoal.client.session.failover import (
    Action,
    Connect,
    Disconnect,
    Drop,
    FailoverPolicy,
    OpenSpan,
    Probe,
    Refresh,
    applied,
    decide,
)
from shoal.client.session.hop_client import LATE_S, TICK_S, HopClient, SessionCredentials
from shoal.client.session.link_table import Hops, LinkTable
from shoal.client.session.planner import Planner, SessionSpec
from shoal.client.session.route_state import Arithmetic, HopId, HopState, LinkEnds, LinkStatus, RouteState, Stage
from shoal.client.session.selection import Constraints, select
from shoal.clock import Clock
from shoal.errors import NetworkError, NoRoute, SessionFenced, ShoalError, WrongRows
from shoal.links.link import LinkKey
from shoal.links.row_log import RowLog
from shoal.links.row_receiver import RowReceiver
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import SECRET_BYTES, LinkGrant, Open
from shoal.swarm.directory.records import SignedRecord
from shoal.types import Hop

log = logging.getLogger("shoal.client")

RESUMED_GENERATIONS = 1 << 24
"""Every time that a session is resumed, its links' generations begin so much higher: above all that were given before."""

SLOW_BYTES_PER_S = 250_000.0
"""A link that is slower than this is taken for a broken one."""

LEAST_BUSY_S = 10.0
"""A hop that computes nothing is waited for so long at least where there is no other, however impatient the caller is."""

MAX_ROUNDS = 100
"""Of deciding and acting at one instant; the rest is left for the next tick."""


class RouteSupervisor:
    """Keeps a route whole between the client's own `ends` of the row stream. `on_change` is called when `stuck` changes."""

    def __init__(
        self,
        terms: SessionSpec,
        planner: Planner,
        ends: tuple[RowLog, RowReceiver],
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.terms = terms
        self._planner = planner
        self._clock = clock
        self._on_change = on_change
        self._sender = ends[0].sender
        self._receiver = ends[1].receiver
        self._policy = _policy(terms)
        self._state = RouteState(terms.span)
        self._clients: dict[HopId, HopClient] = {}
        self._being_opened: set[HopClient] = set()
        self._talked_to: set[HopId] = set()
        self._keys: dict[LinkEnds, Hops] = {}
        self._hop_ids = itertools.count()
        self._generations = itertools.count(terms.resumed * RESUMED_GENERATIONS + 1)
        self._link_table = LinkTable(terms, ends, self._spawn, self._generations, clock)
        self._stirred = asyncio.Event()
        self._settled = asyncio.Event()
        self._acted_at = clock.monotonic()
        self._tasks = asyncio.TaskGroup()
        self._host: asyncio.Task[None] | None = None
        self._mistake: BaseException | None = None

    # What others may know

    @property
    def state(self) -> RouteState:
        """The route as it is now."""
        return self._state

    @property
    def stuck(self) -> BaseException | None:
        """Why nothing is repaired any more: what a step raises."""
        return self._mistake or self._state.given_up

    @property
    def hops(self) -> list[HopClient]:
        """The hops that rows go through, in order."""
        return [self._clients[stage.primary.id] for stage in self._state.stages]

    @property
    def everybody(self) -> list[HopClient]:
        """Those that stand by as well."""
        return [self._clients[hop.id] for hop in self._state.hops]

    # What the session does

    def client(self, hop: Hop, record: SignedRecord, keys: SessionCredentials | None = None) -> HopClient:
        """A hop that is not open yet."""
        return HopClient(hop, record, keys or SessionCredentials.draw(), self._planner.dialler, self._clock, self.stir)

    def keep_private(self, private: bool) -> None:
        """Whether no other process can take this session up: who says that one has is at fault then."""
        self._state = self._state.replaced(private=private)

    def adopt(self, clients: Sequence[HopClient], exact: bool) -> None:
        """Begin with hops that have the session already; those that do not are `lost`."""
        self._state = self._state.replaced(arithmetic=Arithmetic(exact), opened=True)
        hops = [self._registered(client, refused=False) for client in clients]
        self._state = self._state.replaced(stages=tuple(Stage(hop.span, hop) for hop in hops))

    async def open(self, patience_s: float) -> None:
        """Make a route over the whole span, or make whole what `adopt` has brought, and keep it so from now on.

        Raises NoRoute, or what kept its servers away, after `patience_s`.
        """
        told_s = self._policy.told_patience_s if patience_s >= ROUTE_WAIT_S else 0.0  # less is meant as it is given
        self._policy = msgspec.structs.replace(self._policy, opening_patience_s=patience_s, told_patience_s=told_s)
        self._host = asyncio.create_task(self._run())
        await self._settled.wait()
        if self.stuck is not None:
            raise self.stuck

    def begin_step(self, rows: int) -> None:
        """A step of so many rows is under way. What was given up is tried again."""
        now = self._clock.monotonic()
        if self._state.given_up is not None and not isinstance(self._state.given_up, SessionFenced):
            self._state = self._state.retry()
            self.stir()
        self._state = self._state.step_begun(rows, now)
        self._beat_often(True)

    def end_step(self, done: bool) -> None:
        """It is over; `done`: with its rows."""
        self._state = self._state.step_ended(done, self._clock.monotonic())
        self._beat_often(False)

    def _beat_often(self, often: bool) -> None:
        for client in self.everybody:
            client.beat_often(often)

    def progressed(self) -> None:
        """Rows came through."""
        if self._state.in_trouble:
            self._state = self._state.progressed(self._clock.monotonic(), self._policy.proven_s)

    def stir(self) -> None:
        """Something has changed; look."""
        self._stirred.set()

    async def close(self, end: bool = True) -> None:
        """Stop; `end` tells every hop that the session is over. Closing twice is harmless."""
        host, self._host = self._host, None
        if host is not None:
            host.cancel()
            await asyncio.gather(host, return_exceptions=True)
        clients = [*self._clients.values(), *self._being_opened]
        if end:
            await asyncio.gather(*(client.close() for client in clients))
        for client in clients:
            client.detach()

    # The loop

    async def _run(self) -> None:
        try:
            async with self._tasks:
                while True:
                    self.look()
                    await self._changed()
        except BaseExceptionGroup as group:
            self._mistake = group.exceptions[0]
        except Exception as error:
            self._mistake = error
        finally:
            self._settled.set()
            self._on_change()

    async def _changed(self) -> None:
        """Wait until something has changed, or a tick has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._stirred.wait()
        self._stirred.clear()

    def look(self) -> None:
        """Observe, decide, act, until there is nothing more to do now."""
        now = self._clock.monotonic()
        late, self._acted_at = now - self._acted_at > TICK_S + LATE_S, now
        state = self._observed()
        self._state = (state.explained(now) if late else state).noted(now)
        for _ in range(MAX_ROUNDS):
            actions = decide(self._state, now, self._policy)
            if not actions:
                break
            for action in actions:
                self._state = self._execute(action, now)
            self._state = self._observed().noted(now)
        self._talk()
        if self._state.given_up is not None:
            self._on_change()
        if self._state.failovers or self._state.given_up is not None:
            self._settled.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in a task that ends with the session."""
        return self._tasks.create_task(work)

    # Observe

    def _observed(self) -> RouteState:
        """The state with what hops and links say now."""
        state = self._state
        hops = {hop.id: _hop_state(hop, self._clients[hop.id]) for hop in (*state.hops, *state.strays)}
        before = {link.ends: link for link in state.links}
        links = [self._link_status(ends, before[ends]) for ends in self._keys]
        there = tuple(link for link in links if link is not None)
        self._keys = {link.ends: self._keys[link.ends] for link in there}
        sender, received = self._sender, self._receiver.position
        seen = state.with_hops(hops).replaced(links=there, epoch=sender.epoch, end=sender.end, received=received)
        return seen.lagging(self._clock.monotonic())

    def _link_status(self, ends: LinkEnds, status: LinkStatus) -> LinkStatus | None:
        """What a link has become; None when it could not be made."""
        key = self._keys[ends]
        link = self._link_table.links_up.get(key)
        if link is None:
            return status if key in self._link_table.joining else None
        watch = self._link_table.watches.get(key)
        suspect, since = (watch and watch.suspect()) or (None, 0.0)
        made = msgspec.structs.replace(
            status,
            made=True,
            since=link.since,
            generation=link.generation,
            suspect=next((hop_id for hop_id in ends[:2] if hop_id is not None and self._end(hop_id) is suspect), None),
            suspect_since=since,
        )
        news = key.sender.news_of(link.generation) if key.sender is not None else None
        if news is None:
            return made
        message, at = news
        return msgspec.structs.replace(made, said=message.state, said_at=at, said_position=message.position)

    # Act

    def _execute(self, action: Action, now: float) -> RouteState:
        """Begin an action; returns the state with it under way."""
        state = applied(self._state, action, now)
        match action:
            case OpenSpan():
                return self._select(action, state)
            case Connect(ends=ends, through_client=through_client):
                self._keys[ends] = key = LinkKey(self._end(ends.sender), self._end(ends.receiver), ends.follows)
                self._link_table.join(key, through_client, self.stir)
            case Disconnect(ends=ends):
                self._link_table.cut(self._keys.pop(ends))
            case Drop():
                self._drop(action)
            case Probe(hop=hop):
                self._spawn(_ask(self._clients[hop]))
            case Refresh():
                self._spawn(self._refresh())
        return state

    def _end(self, hop_id: HopId | None) -> HopClient | None:
        return None if hop_id is None else self._clients[hop_id]

    def _drop(self, drop: Drop) -> None:
        """A lost hop's server is reported, and told to free its memory if it lives."""
        client = self._clients[drop.hop]
        judged = client.lost is None and (drop.unreachable or isinstance(drop.error, WrongRows))
        log.info("hop %s with blocks %s is lost: %s", client.name, client.hop.span, drop.error)
        client.fail(drop.error)
        if drop.unreachable:
            self._planner.failed(client.record.record)
        if drop.lied or judged:
            self._planner.caught(client.record.record)
        if client.opened:
            self._spawn(client.release())

    async def _refresh(self) -> None:
        with contextlib.suppress(NetworkError):  # the search has a deadline
            await self._planner.refresh()
        search = msgspec.structs.replace(self._state.search, asking=False, missing=None)
        self._state = self._state.replaced(search=search)
        self.stir()

    def _select(self, action: OpenSpan, state: RouteState) -> RouteState:
        """Choose servers for a span and begin to open the session at them; returns the state that follows."""
        opening_id, asked = self._state.openings_made, self.terms.options
        constraints = Constraints(
            action.span,
            action.without,
            action.broken,
            action.numerics,
            asked.exact,
            asked.max_tokens,
            asked.route,
            action.bits,
        )
        try:
            hops = select(*self._planner.candidates(self.terms.model), constraints)
            clients = [self.client(hop, self._planner.record(hop.peer)) for hop in hops]
        except NoRoute as error:
            return state.not_opened(opening_id, error, self._clock.monotonic())
        self._spawn(self._open(opening_id, clients, action.follow))
        return state

    async def _open(self, opening_id: int, clients: Sequence[HopClient], follow: bool) -> None:
        """Open the session at servers; those that refuse are `lost`."""
        self._being_opened.update(clients)
        results = await asyncio.gather(*(self._open_at(one, follow) for one in clients), return_exceptions=True)
        for client, result in zip(clients, results, strict=True):
            if isinstance(result, ShoalError):
                client.fail(result)
            elif isinstance(result, BaseException):
                raise result
        self._being_opened.difference_update(clients)
        hops = [self._registered(client, refused=True) for client in clients]  # notes their arithmetic in the state
        self._state = self._state.was_opened(opening_id, hops)
        self.stir()

    async def _open_at(self, client: HopClient, follow: bool) -> None:
        terms, keys = self.terms, client.keys
        upstream = LinkGrant(next(self._generations), terms.me, secrets.token_bytes(SECRET_BYTES))
        request = Open(
            keys.session,
            keys.incarnation,
            keys.secret,
            terms.model.fingerprint,
            client.hop.span,
            terms.options.max_tokens,
            upstream,
            terms.options.keep_s,
            terms.options.row_codec,
            follow,
        )
        await client.open(request, self._sender)

    def _registered(self, client: HopClient, refused: bool) -> HopState:
        """A hop's first state; one of other arithmetic is lost where that matters. `refused`: if lost, by its own answer."""
        differs = client.lost is None and not self._agrees(client)
        if differs:
            client.fail(ShoalError(f"{client.name} computes other bits than this session has so far"))
        hop_id, lost = next(self._hop_ids), client.lost
        self._clients[hop_id] = client
        fresh = HopState(
            hop_id,
            client.peer,
            client.name,
            client.hop.span,
            joined=lost is None,
            refused=lost is not None and (refused or differs),
        )
        return _hop_state(fresh, client)

    def _agrees(self, client: HopClient) -> bool:
        """Note a hop's arithmetic; False when it differs and the session must be exact."""
        assert client.numerics is not None
        known, exact_only, span = self._state.arithmetic, self.terms.options.exact, client.hop.span
        fresh = self._sender.end == 0
        blocks, same = known.compared(span, client.numerics, client.weights, fresh)
        if exact_only and not same:
            return False
        bits = known.told(span, client.record.record.bits_per_weight, fresh)
        self._state = self._state.replaced(arithmetic=Arithmetic(known.exact and same, blocks, bits))
        return True

    def _talk(self) -> None:
        """Listen to hops that are new, and take leave of those that the state does not name any more."""
        hops = {hop.id: hop for hop in (*self._state.hops, *self._state.strays)}
        for hop_id, hop in hops.items():
            if hop.joined and hop.alive and hop_id not in self._talked_to:
                self._talked_to.add(hop_id)
                self._clients[hop_id].beat_often(self._state.step.active)
                self._spawn(self._clients[hop_id].run(self._sender))
        for hop_id in [hop_id for hop_id in self._clients if hop_id not in hops]:
            client = self._clients.pop(hop_id)
            self._talked_to.discard(hop_id)
            if client.lost is None:
                self._spawn(client.close())


def _policy(terms: SessionSpec) -> FailoverPolicy:
    return FailoverPolicy(
        patience_s=terms.options.patience_s,
        told_patience_s=terms.options.patience_s,
        redundancy=terms.options.redundancy,
        busy_most_s=min(FailoverPolicy().busy_most_s, max(LEAST_BUSY_S, terms.options.patience_s)),
        frame_s=FRAME_ROWS * terms.row_bytes / SLOW_BYTES_PER_S,
        frame_rows=FRAME_ROWS,
    )


def _hop_state(hop: HopState, client: HopClient) -> HopState:
    """A hop as its client knows it now."""
    heartbeat = client.heartbeat
    return msgspec.structs.replace(
        hop,
        lost=hop.lost or client.lost,
        leaving=client.leaving,
        progress=heartbeat.progress,
        heard_at=heartbeat.heard_at,
        changed_at=heartbeat.changed_at,
        stepped_at=heartbeat.stepped_at,
        worked_at=heartbeat.worked_at,
    )


async def _ask(client: HopClient) -> None:
    with contextlib.suppress(NetworkError):  # the client's own task notices
        await client.ping()
