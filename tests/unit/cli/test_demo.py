"""`shoal demo`: which server it kills, when, and what it tells of it."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from shoal.cli.demo import _disturbed, _tell
from shoal.client.session.route_state import FailoverEvent
from tests.unit.cli.replies import FAR, NEAR, Stream


class Swarm:
    """Notes who was killed; the stream then heals."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.killed: list[str] = []

    def of(self, peer: str) -> SimpleNamespace:
        """LocalCluster."""

        def kill() -> None:
            self.killed.append(peer)
            self.stream.failovers = (FailoverEvent("it is gone", 0.0, 1.0, ("near",), ("spare",), 12),)

        return SimpleNamespace(kill=kill)


def test_the_middle_server_is_killed_after_a_third(capsys: pytest.CaptureFixture[str]) -> None:
    """Once; what replaced it and what that cost is the story."""
    stream = Stream(*"abcdef")
    stream.route = (NEAR, FAR)
    swarm = Swarm(stream)
    reply, story = _disturbed(
        SimpleNamespace(stream=lambda *_, **__: stream),  # type: ignore[arg-type]  # a model by its shape
        swarm,  # type: ignore[arg-type]  # a cluster by its shape
        "prompt",
        raw=False,
        max_tokens=6,
        quiet=False,
    )
    assert swarm.killed == [NEAR.peer]
    assert reply is stream.completion
    assert (story["killed"], story["killed_after_tokens"]) == ("near", 3)
    assert (story["replaced_by"], story["replayed_rows"]) == (["spare"], 12)
    assert story["pause_s"] >= 0
    assert capsys.readouterr().out == "abcdef\n"


def test_an_answer_that_was_over_before(said: io.StringIO) -> None:
    """No pause was seen, and none is told."""
    stream = Stream("a", "b", "c")
    _, story = _disturbed(
        SimpleNamespace(stream=lambda *_, **__: stream),  # type: ignore[arg-type]  # a model by its shape
        Swarm(stream),  # type: ignore[arg-type]  # a cluster by its shape
        "prompt",
        raw=True,
        max_tokens=100,
        quiet=True,
    )
    assert "killed" not in story
    assert "pause_s" not in story
    _tell(story)
    assert "over before" in said.getvalue()


def test_what_is_told(said: io.StringIO) -> None:
    """All that the story has."""
    _tell({"killed": "b", "killed_after_tokens": 32, "replaced_by": ["x", "y"], "replayed_rows": 40, "pause_s": 0.5})
    assert "b died after 32 tokens; x, y took over 40 rows: a pause of 0.50 s" in said.getvalue()
