"""States of a route as tests want them: two hops of six blocks each, joined from end to end."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.client.session.route_state import HopId, HopState, LinkEnds, LinkStatus, RouteState, Stage
from shoal.protocol.messages import Pong
from shoal.types import PeerId, Span

FIRST, SECOND = Span(0, 6), Span(6, 12)
ALL = Span(0, 12)
ONE, TWO, STANDBY = 1, 2, 3


def peer_of(hop_id: HopId) -> PeerId:
    """The node id of a hop's server."""
    return PeerId(f"{hop_id:064x}")


def hop_at(hop_id: HopId, span: Span, **fields: Any) -> HopState:
    """A hop that is alive and well."""
    return HopState(hop_id, peer_of(hop_id), f"hop {hop_id}", span, **fields)


def joined(state: RouteState) -> RouteState:
    """With every link that should be made directly, as far as it is not there."""
    there = {link.ends for link in state.links}
    links = (LinkStatus(ends) for ends in state.wanted_links() if ends not in there)
    return state.replaced(links=(*state.links, *links))


def route(**fields: Any) -> RouteState:
    """Two hops, whole and idle."""
    stages = Stage(FIRST, hop_at(ONE, FIRST)), Stage(SECOND, hop_at(TWO, SECOND))
    return joined(RouteState(ALL, stages, opened=True, **fields).noted(0.0)).noted(0.0)


def changed(state: RouteState, hop_id: HopId, **fields: Any) -> RouteState:
    """With other fields of a hop."""
    hop = state.hop(hop_id)
    assert hop is not None
    return state.with_hops({hop_id: msgspec.structs.replace(hop, **fields)})


def reported(state: RouteState, hop_id: HopId, position: int, computed: int, step_s: float = 0.0) -> RouteState:
    """A hop has said how far it is, at 0 s."""
    return changed(state, hop_id, progress=Pong(0, 0.0, 0.0, 0, position, computed, step_s=step_s))


def said(state: RouteState, ends: LinkEnds, word: str, **fields: Any) -> RouteState:
    """The sender of a link has said how it is, at 0 s, or the link is otherwise changed."""
    fields["said"] = word
    links = (msgspec.structs.replace(link, **fields) if link.ends == ends else link for link in state.links)
    return state.replaced(links=tuple(links))


def followed(state: RouteState, stage: int = 0, hop_id: HopId = STANDBY) -> RouteState:
    """With a hop that stands by for a stage, linked."""
    span = state.stages[stage].span
    return joined(state.with_stage(span, standbys=(hop_at(hop_id, span),)))


def stepping(state: RouteState, rows: int = 1) -> RouteState:
    """A step of so many rows began at 0 s."""
    return state.replaced(end=state.end + rows).step_begun(rows, 0.0)
