"""The line that says what a command waits for."""

from __future__ import annotations

import pytest

from shoal.cli.status_line import AGAIN_S, SILENCE_S, StatusLine


class Hand:
    """Time that moves only when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Clock."""
        return self.now

    def wall(self) -> float:
        """Clock."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Clock: nobody sleeps here."""
        raise NotImplementedError


class Paper:
    """A screen that keeps what was put on it."""

    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.width = 20
        self.text = ""

    def put(self, text: str) -> None:
        """Screen."""
        self.text += text

    def taken(self) -> str:
        """What was put there since the last time."""
        text, self.text = self.text, ""
        return text


class Watched:
    """A line, its screen and the time; `what` is what is waited for."""

    def __init__(self, is_terminal: bool) -> None:
        self.clock, self.paper = Hand(), Paper(is_terminal)
        self.line = StatusLine(self.paper, self.clock)
        self.what = "connecting"
        self.line.watch(lambda: self.what)
        self.line.start()

    def after(self, seconds: float) -> str:
        """What is shown when so much time has passed."""
        self.clock.now += seconds
        self.line.tick()
        return self.paper.taken()


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """A line that looks when the test says so."""
    monkeypatch.setattr(StatusLine, "_keep", lambda line: None)
    return Watched(request.param)


def test_it_is_silent_for_half_a_second(watched: Watched) -> None:
    """And says then what is waited for; what is printed meanwhile begins the half second anew."""
    assert watched.after(SILENCE_S - 0.1) == ""
    with watched.line.printing():
        pass
    assert watched.after(SILENCE_S - 0.1) == ""
    assert "connecting" in watched.after(0.2)


def test_it_says_for_how_long(watched: Watched) -> None:
    """As long as only numbers in it change, it is the same wait."""
    watched.what = "waiting for blocks 10:20"
    watched.after(0.0)
    if watched.paper.is_terminal:
        assert watched.after(12.0).endswith("\x1b[2K| waiting for block")
        watched.paper.width = 80
        assert watched.after(0.0).endswith("waiting for blocks 10:20, 12 s")
    else:
        assert watched.after(12.0) == "waiting for blocks 10:20, 12 s\n"


def test_a_file_gets_no_line_for_every_number(watched: Watched) -> None:
    """Only when the words change, and now and then."""
    if watched.paper.is_terminal:
        pytest.skip("a terminal's line is written over")
    said = []
    for count in range(30):
        watched.what = f"reading the prompt {count} of 30"
        said.append(watched.after(1.0))
    assert [line for line in said if line] == [
        "reading the prompt 0 of 30\n",
        "reading the prompt 10 of 30, 10 s\n",
        "reading the prompt 20 of 30, 20 s\n",
    ]
    watched.what = "opening a session"
    assert watched.after(0.1) == "opening a session\n"
    assert AGAIN_S == 10.0


def test_what_passed_before_counts(watched: Watched) -> None:
    """A command that takes long until it can say anything says so at once."""
    watched.line.start(watched.clock.now - SILENCE_S)
    assert "connecting" in watched.after(0.0)


def test_it_looks_alive(watched: Watched) -> None:
    """On a terminal something moves more often than each second, beside what says itself what changes."""
    if not watched.paper.is_terminal:
        pytest.skip("a file's line stays")
    watched.after(1.0)
    seen = [watched.after(0.25) for _ in range(8)]
    assert all(seen)
    assert len(set(seen[:3])) == 3
    watched.line.watch(lambda: "2 sessions", timed=False)
    assert watched.after(0.25).endswith("\x1b[2K2 sessions")
    assert watched.after(0.25) == ""


def test_it_makes_room_for_what_is_printed(watched: Watched) -> None:
    """A terminal's line is taken away first; beneath an unfinished line it comes and goes without touching that."""
    if not watched.paper.is_terminal:
        pytest.skip("a file's line stays")
    assert watched.after(1.0) == "\r\x1b[2K| connecting"
    with watched.line.printing(ends_line=False):
        assert watched.paper.taken() == "\r\x1b[2K"
    shown = watched.after(0.6)
    assert shown.startswith("\x1bD\x1b[A\x1b7\r\n")
    assert shown.endswith("connecting\x1b8")
    with watched.line.printing():
        assert watched.paper.taken() == "\x1b7\r\n\x1b[2K\x1b8"


def test_nothing_is_said_while_the_user_types(watched: Watched) -> None:
    """Nor when nothing is waited for, nor after the end."""
    with watched.line.silent():
        assert watched.after(5.0) == ""
    assert watched.after(0.1) == ""
    assert watched.after(0.6) != ""
    watched.what = ""
    assert "connecting" not in watched.after(0.6)
    watched.what = "again"
    watched.line.stop()
    watched.paper.taken()
    assert watched.after(5.0) == ""
