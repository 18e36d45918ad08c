"""What the hops say of their progress, and what follows from it: hung, cut off from the next, late, caught up."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from shoal.client.session.hop_client import HopClient
from shoal.engine.scheduler import PREFILL_CHUNK_ROWS
from shoal.errors import NetworkError, ShoalError
from shoal.links.link import LinkKey

if TYPE_CHECKING:
    from shoal.client.session.stage import Stage
    from shoal.client.session.supervisor import RouteSupervisor

HUNG_S = 3.0
"""A hop that beats, has rows to compute and makes no step for so long (or 8 of its usual steps) hangs."""

STALLED_S = 3.0
"""Rows that one hop has and the next does not get for so long: the two cannot reach each other."""

DOWN_S = 1.0
"""The same when the sending hop says that it cannot connect."""

SLOW_BYTES_PER_S = 250_000.0
"""A link that is slower than this is taken for a broken one."""

DIRECT_AGAIN_S = 15.0
"""After so long a link that the client carries is tried directly again, between two steps."""

HEDGE_S = 0.25
POKE_S = 0.1
"""With a hop standing by: a decoding step so late is looked into, and its late hop relieved after a last question."""

DECODE_ROWS = 8
CAUGHT_UP_ROWS = 8
WEIGHT = 0.2


class FailureDetector:
    """Judges a chain's progress; acts by marking hops lost, links broken, and by promoting those who stand by."""

    def __init__(self, supervisor: RouteSupervisor) -> None:
        self.active = False
        self._chain = supervisor
        self._since = 0.0
        self._rows = 0
        self._expected_s = 0.0
        self._poked_at: float | None = None

    def begin(self, rows: int) -> None:
        """A step of so many rows is under way."""
        self.active, self._rows = True, rows
        self.restart()
        for control in self._chain.everybody:
            control.heartbeat.active = True

    def end(self, done: bool) -> None:
        """It is over; `done`: with its rows."""
        elapsed_s = self._chain.clock.monotonic() - self._since
        if done and self._rows <= DECODE_ROWS:
            self._expected_s += (elapsed_s - self._expected_s) * (WEIGHT if self._expected_s else 1.0)
        self.active = False
        for control in self._chain.everybody:
            control.heartbeat.active = False

    def restart(self) -> None:
        """Whatever took long until now is explained."""
        self._since = self._chain.clock.monotonic()
        self._poked_at = None

    def look(self) -> None:
        """Judge."""
        self._find_gone()
        self._find_down()
        self._relieve_leaving()
        if self.active:
            self._hedge()
            self._find_stalled()
        else:
            self._try_directly()

    def _find_gone(self) -> None:
        """A hop whose journal no longer has what the next one needs starts afresh, and computes those rows again."""
        for pair, wire in list(self._chain.link_table.links_up.items()):
            sender, _, follow = pair
            news = sender.links.get(wire.generation) if sender is not None else None
            if sender is None or news is None or news[0].state != "gone" or sender.lost is not None:
                continue
            if follow:
                stage = next(stage for stage in self._chain.stages if stage.standbys and stage.standbys[0] is pair[1])
                stage.standbys, stage.look_again_at = [], float("inf")
            else:
                sender.fail(ShoalError(f"{sender.name} no longer has rows {news[0].position} and on"))

    def _find_down(self) -> None:
        now = self._chain.clock.monotonic()
        for pair, wire in list(self._chain.link_table.links_up.items()):
            sender, receiver, _ = pair
            if sender is None or receiver is None or wire.bridged:
                continue
            news = sender.links.get(wire.generation)
            if news is not None and news[0].state == "down" and now - news[1] > DOWN_S and self._both_live(pair):
                self._break(pair)

    @staticmethod
    def _both_live(pair: LinkKey[HopClient]) -> bool:
        return all(node is None or node.lost is None for node in pair[:2])

    def _break(self, pair: LinkKey[HopClient]) -> None:
        self._chain.link_table.break_(pair)
        self.restart()
        self._chain.stir()

    def _try_directly(self) -> None:
        now = self._chain.clock.monotonic()
        for pair, wire in list(self._chain.link_table.links_up.items()):
            if wire.bridged and now - wire.since > DIRECT_AGAIN_S:
                self._chain.link_table.mend(pair)
                self._chain.stir()

    def _behind(self, control: HopClient) -> bool:
        sender, progress = self._chain.sender, control.heartbeat.progress
        return progress.epoch < sender.epoch or progress.computed < sender.end

    def _find_stalled(self) -> None:
        """The first hop that is behind either hangs, or does not get what the one before it has."""
        now, supervisor = self._chain.clock.monotonic(), self._chain
        before: HopClient | None = None
        for control in supervisor.controls:
            if self._behind(control):
                changed_at = max(
                    self._since, control.heartbeat.changed_at, before.heartbeat.changed_at if before else 0.0
                )
                progress = control.heartbeat.progress
                if progress.position > progress.computed:
                    if now - changed_at > max(HUNG_S, 8 * progress.step_s):
                        control.fail(NetworkError(f"{control.name} beats but does not compute"))
                elif now - changed_at > max(STALLED_S, self._frame_s()):
                    self._break(LinkKey(before, control))
                return
            before = control
        if before is not None and now - max(self._since, before.heartbeat.changed_at) > max(STALLED_S, self._frame_s()):
            self._break(LinkKey(before, None))

    def _frame_s(self) -> float:
        return PREFILL_CHUNK_ROWS * self._chain.terms.row_bytes / SLOW_BYTES_PER_S

    def _hedge(self) -> None:
        """A late decoding step at a hop that has somebody standing by goes on there at once."""
        supervisor = self._chain
        now = supervisor.clock.monotonic()
        if self._rows > DECODE_ROWS or not any(stage.ready for stage in supervisor.stages):
            return
        if now - self._since < max(4 * self._expected_s, HEDGE_S):
            return
        if self._poked_at is None:
            self._poked_at = now
            for control in supervisor.everybody:
                if control.lost is None:
                    supervisor.spawn(_ask(control))
            return
        if now - self._poked_at < POKE_S:
            return
        self._poked_at = None
        for index, stage in enumerate(supervisor.stages):
            if self._behind(stage.control) or stage.control.heartbeat.heard_at < self._since:
                if (
                    stage.ready
                    and stage.standbys[-1].heartbeat.progress.computed >= stage.control.heartbeat.progress.computed
                ):
                    supervisor.promote(index, keep_old=True)
                    self.restart()
                return

    def _relieve_leaving(self) -> None:
        for index, stage in enumerate(self._chain.stages):
            if stage.control.leaving and stage.ready and self._caught_up(stage):
                self._chain.promote(index)
                return

    def _caught_up(self, stage: Stage) -> bool:
        supervisor, follower = self._chain, stage.standbys[-1]
        now = supervisor.clock.monotonic()
        if now - follower.heartbeat.heard_at > POKE_S and follower.lost is None:
            supervisor.spawn(_ask(follower))
        progress = follower.heartbeat.progress
        reached = progress.computed + CAUGHT_UP_ROWS >= supervisor.sender.end
        return progress.epoch >= supervisor.sender.epoch and reached


async def _ask(control: HopClient) -> None:
    with contextlib.suppress(NetworkError):  # its own task notices
        await control.ping()
