"""What a client is doing, in a few words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal.client.activity import Activity, reply_waits, session_waits
from shoal.client.completion import GrowingReply
from shoal.client.session.route_state import FailoverEvent, RouteState, Search
from shoal.errors import NoRoute
from shoal.model.nn.sampling_params import SamplingParams
from shoal.types import Span

BROKEN = FailoverEvent("it is gone", 0.0)
LACKING = Search(missing=NoRoute("no server holds blocks", ((3, 5), (8, 9))))


def session(returned: int = 0, **state: Any) -> Any:
    """A session by what is asked of it."""
    route = RouteState(Span(0, 12), **state)
    return SimpleNamespace(returned=returned, supervisor=SimpleNamespace(state=route))


def test_the_newest_is_told() -> None:
    """Unless it has nothing to say; nothing once all is done."""
    activity, said = Activity(), ["reading"]
    with activity.doing("opening"):
        assert str(activity) == "opening"
        with activity.doing(lambda: said[0]):
            assert str(activity) == "reading"
            said[0] = ""
            assert str(activity) == "opening"
    assert str(activity) == ""


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, ""),
        ({"failover": BROKEN}, "opening a session"),
        ({"failover": BROKEN, "opened": True}, "looking for another server"),
        ({"failover": BROKEN, "opened": True, "search": LACKING}, "waiting for blocks 3:5, 8:9"),
    ],
)
def test_what_a_session_waits_for(state: dict[str, Any], text: str) -> None:
    """Servers at first, others later, blocks that nobody has."""
    assert session_waits(session(**state)) == text


def test_what_a_reply_waits_for() -> None:
    """Nothing before its session is open; rows of its prompt, its first token, its next one."""
    reply = GrowingReply(range(5150), SamplingParams())
    assert reply_waits(reply) == ""
    reply.begin(session(1024), "")
    assert reply_waits(reply) == "reading the prompt 1,024 of 5,150"
    reply.begin(session(1024, failover=BROKEN, opened=True, search=LACKING), "")
    assert reply_waits(reply) == "waiting for blocks 3:5, 8:9"
    reply.begin(session(5150), "")
    reply.prefilled(0, 1.0)
    assert reply_waits(reply) == "choosing the first token"
    reply.grow(3, "a", "", True, 0.1)
    assert reply_waits(reply) == "waiting for the next token"
    reply.grow(4, "b", "stop", True, 0.1)
    assert reply_waits(reply) == ""
