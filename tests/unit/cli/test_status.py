"""`shoal status`: servers by model, and the blocks that are missing."""

from __future__ import annotations

import io
import time
from typing import Any

import msgspec
import pytest

from shoal.cli.status import LoadView, _duration, _nats, _short, _show, model_views
from shoal.cli.terminal import console
from shoal.client.client import ServerStatus
from shoal.protocol.messages import AccountLoad, Status
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


def test_a_record_that_differs_is_another_model() -> None:
    """A stranger's record says nothing of the blocks that others serve, nor what their model is called."""
    shape, name = ModelSpec("tiny", "f" * 32, 1000, 48), ModelSpec("a lie", "f" * 32, 8, 48)
    silent = [held("a", 0, 1000, model=shape), held("b", 0, 8, model=name)]
    views = model_views([*(ServerStatus(one, None, "gone") for one in silent), ServerStatus(held("c", 0, 8), LOAD)])
    assert [(view.name, view.num_blocks, view.missing) for view in views] == [
        ("tiny", 8, ()),
        ("tiny", 1000, ((0, 1000),)),
    ]


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
            ServerStatus(held("a", 0, 4, name="near", bits_per_weight=4.25, kl_nats=0.0312), LOAD),
            ServerStatus(held("b", 0, 4, bits_per_weight=32.0), unmeasured),
            ServerStatus(held("c", 4, 8, kl_nats=0.0), None, "does not answer"),
        ]
    )
    _show(view)
    rows = [line.split() for line in said.getvalue().splitlines()]
    assert ["near", "0:4", "4.25", "0.031", "1/4", "20", "30k", "12.4", "9k", "up", "1", "min"] in rows
    assert ["b" * 8, "0:4", "32", "-", "1/4", "20", "30k", "-", "9k", "up", "1", "min"] in rows
    assert any(row[:5] == ["c" * 8, "4:8", "-", "0", "silent"] for row in rows)
    assert "bits per weight and nats from the base (KL) are the servers' own words" in said.getvalue()
    assert f"{'c' * 8} was heard" in said.getvalue()
    assert "ago: does not answer" in said.getvalue()
    assert rows[-1] == ["missing", "blocks:", "4:8"]
    _show(msgspec.structs.replace(view, missing=()))
    assert said.getvalue().endswith("all blocks are served\n")


def test_bits_and_quality_are_words_of_the_server(said: io.StringIO) -> None:
    """A script reads them, and null where nothing was said; then no table explains them."""
    told, silent = held("a", 0, 4, bits_per_weight=4.25, kl_nats=0.0004), held("b", 4, 8)
    [view] = model_views([ServerStatus(told, LOAD), ServerStatus(silent, LOAD)])
    assert [(one.bits_per_weight, one.kl_nats) for one in view.servers] == [(4.25, 0.0004), (None, None)]
    [quiet] = model_views([ServerStatus(silent, LOAD)])
    _show(quiet)
    assert "own words" not in said.getvalue()
    _show(view)
    assert [_nats(one) for one in (None, 0.0, 0.0004, 0.0312, 9.99, 12.34, 100.0)] == [
        "-",
        "0",
        "<.001",
        "0.031",
        "9.990",
        "12.3",
        "100.0",
    ]


def test_a_server_that_clients_share(said: io.StringIO) -> None:
    """Said where there are several: what one's own has, and what it may have."""
    most = AccountLoad(sessions=3, tokens=30_000, queued_rows=12, journal_bytes=4096)
    shared = msgspec.structs.replace(
        LOAD, sessions=5, max_sessions=64, clients=3, your_sessions=2, share_sessions=21.3, greediest=(most,)
    )
    [view] = model_views([ServerStatus(held("a", 0, 8, name="near"), shared), ServerStatus(held("b", 0, 8), LOAD)])
    _show(view)
    lines = said.getvalue().splitlines()
    assert "near: 3 clients; yours has 2 of 5 sessions, an equal share is 21.3 of 64" in lines
    assert "near: the greediest has 3 sessions, 30k tokens, 12 rows queued" in lines
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


def test_a_server_that_left_in_good_order_has_left(said: io.StringIO) -> None:
    """One that only does not answer is silent, since its last word."""
    now = time.time()
    [view] = model_views(
        [
            ServerStatus(held("a", 0, 4, draining=True), LOAD),
            ServerStatus(held("b", 0, 4, draining=True), None, "refused"),
            ServerStatus(held("c", 4, 8, issued_at=now - 250), None, "refused"),
        ]
    )
    assert [one.state for one in view.servers] == ["leaving", "left", "silent"]
    assert view.servers[2].heard_s == pytest.approx(250, abs=5)
    _show(view)
    rows = [line.split() for line in said.getvalue().splitlines()]
    assert ["b" * 8, "0:4", "-", "-", "left"] in rows
    assert ["c" * 8, "4:8", "-", "-", "silent", "4", "min"] in rows


def test_a_table_fits_into_80_columns(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the longest name, the largest numbers and a cause that is long."""
    monkeypatch.setattr(console, "_width", 80)
    busy = msgspec.structs.replace(
        LOAD,
        sessions=64,
        max_sessions=64,
        queued_rows=999_999,
        free_tokens=16_777_216,
        rows_computed=2**40,
        decode_rows_per_s=1234.5,
        uptime_s=86_399 * 30,
    )
    [view] = model_views(
        [
            ServerStatus(held("a", 0, 4, name="n" * 64, bits_per_weight=4.25, kl_nats=0.0123), busy),
            ServerStatus(held("b", 4, 8, issued_at=time.time() - 290), None, "tls://x " * 40),
        ]
    )
    _show(view)
    lines = said.getvalue().splitlines()
    assert len(lines) == 7
    assert all(len(line.rstrip()) <= 80 for line in lines if "was heard" not in line)


def test_numbers_are_short() -> None:
    """Three digits and a unit."""
    assert [_short(one) for one in (0, 999, 999.9, 30_000, 999_999, 1_048_576, 2**40)] == [
        "0",
        "999",
        "1k",
        "30k",
        "1M",
        "1.05M",
        "1.1T",
    ]
