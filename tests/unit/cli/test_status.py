"""`shoal status`: servers by model, and the blocks that are missing."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest

from shoal.cli.status import LoadView, _duration, _show, model_views
from shoal.client.client import ServerStatus
from shoal.protocol.messages import Status
from shoal.swarm.directory.records import ServerRecord
from shoal.types import ModelSpec, PeerId
from tests.unit.swarm.routing.test_route_planner import server

LOAD = Status(1, 4, 20, 30_000, 40_000, 12.4, 100.0, 60.0, rows_computed=9_000, moves=2)


def held(letter: str, start: int, stop: int, **changes: Any) -> ServerRecord:
    """A record of blocks of one of the models."""
    return msgspec.structs.replace(server(PeerId(letter * 64), start, stop), **changes)


def test_servers_stand_by_model_and_by_block() -> None:
    """Two checkpoints of one name are two models; what has not answered serves nothing."""
    other = ModelSpec("tiny", "e" * 32, 8, 48)
    views = model_views(
        [
            ServerStatus(held("c", 6, 8), LOAD),
            ServerStatus(held("b", 3, 6, name="slow"), None, "does not answer"),
            ServerStatus(held("a", 0, 4), LOAD),
            ServerStatus(held("d", 0, 8, model=other), LOAD),
        ]
    )
    by_print = {view.fingerprint: view for view in views}
    view = by_print["f" * 32]
    assert [(one.peer[0], one.span) for one in view.servers] == [("a", (0, 4)), ("b", (3, 6)), ("c", (6, 8))]
    assert (view.servers[1].load, view.servers[1].problem) == (None, "does not answer")
    assert view.missing == ((4, 6),)
    assert by_print["e" * 32].missing == ()


def test_an_empty_swarm() -> None:
    """There is no model to name."""
    assert model_views([]) == []


def test_a_load_has_every_field_of_the_answer() -> None:
    """What a server tells is what a script reads, also where it is at its default."""
    assert LoadView.__struct_fields__ == Status.__struct_fields__
    [view] = model_views([ServerStatus(held("a", 0, 4), LOAD)])
    assert msgspec.structs.astuple(view.servers[0].load) == msgspec.structs.astuple(LOAD)  # type: ignore[arg-type]  # there


def test_what_people_see(said: io.StringIO) -> None:
    """A row for each server: its name or its id, its load or what is wrong with it."""
    unmeasured = msgspec.structs.replace(LOAD, decode_rows_per_s=0.0)
    [view] = model_views(
        [
            ServerStatus(held("a", 0, 4, name="near"), LOAD),
            ServerStatus(held("b", 0, 4), unmeasured),
            ServerStatus(held("c", 4, 8), None, "does not answer"),
        ]
    )
    _show(view)
    rows = [line.split() for line in said.getvalue().splitlines()]
    assert ["near", "0:4", "1/4", "20", "30,000", "12", "9,000", "1", "min"] in rows
    assert ["b" * 8, "0:4", "1/4", "20", "30,000", "-", "9,000", "1", "min"] in rows
    assert ["c" * 8, "4:8", "does", "not", "answer"] in rows
    assert rows[-1] == ["missing", "blocks:", "4:8"]
    _show(msgspec.structs.replace(view, missing=()))
    assert said.getvalue().endswith("all blocks are served\n")


def test_a_server_that_clients_share(said: io.StringIO) -> None:
    """Said where there are several: what one's own has, and what it may have."""
    shared = msgspec.structs.replace(LOAD, sessions=5, max_sessions=64, clients=3, your_sessions=2, share_sessions=21.3)
    [view] = model_views([ServerStatus(held("a", 0, 8, name="near"), shared), ServerStatus(held("b", 0, 8), LOAD)])
    _show(view)
    lines = said.getvalue().splitlines()
    assert "near: 3 clients; yours has 2 of 5 sessions, an equal share is 21.3 of 64" in lines
    assert len([line for line in lines if "clients" in line]) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60.0, "1 min"),
        (3599.0, "59 min"),
        (3600.0, "1 h 0 min"),
        (90_000.0, "1 d 1 h"),
    ],
)
def test_times_are_shown_in_their_two_largest_units(seconds: float, text: str) -> None:
    """The smaller one is cut, not rounded."""
    assert _duration(seconds) == text
