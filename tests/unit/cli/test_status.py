"""What `shoal status` shows."""

from __future__ import annotations

import msgspec

from shoal.cli.status import LoadView, _duration, model_views
from shoal.client.client import ServerStatus
from shoal.protocol.messages import Status
from shoal.swarm.identity import Identity
from shoal.types import ModelSpec, Span
from tests.records import FINGERPRINT, signed_record

MODEL = ModelSpec("tiny", FINGERPRINT, 6, 48)
LOAD = Status(0, 64, 0, 100, 200, 0.0, 0.0, 61.0)


def server(span: Span, status: Status | None, model: ModelSpec = MODEL, problem: str = "") -> ServerStatus:
    """A server of these blocks."""
    return ServerStatus(signed_record(Identity.generate(), model=model, span=span).record, status, problem)


def test_json_has_every_field() -> None:
    """A value that is a default on the wire is a value too."""
    (view,) = model_views([server(Span(0, 6), LOAD)])
    load = msgspec.to_builtins(view)["servers"][0]["load"]
    assert set(load) == set(Status.__struct_fields__) == set(LoadView.__struct_fields__)
    assert load["prefix_rows"] == 0
    assert load["exact"] is True


def test_servers_stand_in_the_order_of_their_blocks_by_model() -> None:
    """What a server that does not answer holds is missing, unless another one holds it."""
    other = ModelSpec("other", "cd" * 16, 2, 48)
    views = model_views(
        [
            server(Span(3, 6), None, problem="it is silent"),
            server(Span(0, 2), LOAD, other),
            server(Span(0, 4), LOAD),
        ]
    )
    assert [view.name for view in views] == ["other", "tiny"]
    assert [one.span for one in views[1].servers] == [(0, 4), (3, 6)]
    assert views[1].servers[1].load is None
    assert views[1].servers[1].problem == "it is silent"
    assert [view.missing for view in views] == [(), ((4, 6),)]


def test_a_duration_has_two_units() -> None:
    """The largest ones."""
    assert [_duration(s) for s in (5.2, 125, 3 * 3600 + 60, 49 * 3600)] == ["5 s", "2 min", "3 h 1 min", "2 d 1 h"]
