"""What a hop says, against what the client has sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.client.session.stream_check import StreamCheck
from shoal.errors import WrongRows
from shoal.protocol.messages import Pong, ResumeFrom, RowsFrame
from shoal.protocol.row_stream import Sender


def stream() -> StreamCheck:
    """Of a client that has sent eight rows, taken back three, and is in its first epoch after that."""
    sender = Sender()
    sender.append(8)
    sender.rewind(1, 5)
    return StreamCheck(sender)


def pong(epoch: int, position: int) -> Pong:
    """A hop's word of how far it is."""
    return Pong(0, 0.0, 0.0, epoch, position, 0)


@pytest.mark.parametrize(
    "say",
    [
        lambda check: check.rows(RowsFrame(1, 2, 3, 1)),
        lambda check: check.rows(RowsFrame(0, 2, 6, 0)),
        lambda check: check.resumed(ResumeFrom(1, 5)),
        lambda check: check.resumed(ResumeFrom(0, 8)),
        lambda check: check.progress(pong(1, 5)),
        lambda check: check.progress(pong(0, 8)),
    ],
)
def test_what_may_be(say: Callable[[StreamCheck], None]) -> None:
    """Up to what was sent; of an older epoch more, since its rewind may be on its way."""
    say(stream())


@pytest.mark.parametrize(
    "say",
    [
        lambda check: check.rows(RowsFrame(1, 5, 1, 1)),
        lambda check: check.rows(RowsFrame(2, 0, 1, 1)),
        lambda check: check.resumed(ResumeFrom(2, 0)),
        lambda check: check.progress(pong(1, 6)),
        lambda check: check.progress(pong(1 << 40, 0)),
    ],
)
def test_what_cannot_be(say: Callable[[StreamCheck], None]) -> None:
    """Rows beyond the stream and epochs that never were; a hop before the one that says so may have begun it."""
    with pytest.raises(WrongRows) as caught:
        say(stream())
    assert caught.value.relayed
    assert caught.value.ahead


def told(epoch: int, position: int, computed: int) -> Pong:
    """A hop's word with what it has computed."""
    return Pong(0, 0.0, 0.0, epoch, position, computed)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (told(0, 5, 3), told(0, 4, 3)),
        (told(0, 5, 3), told(0, 5, 2)),
        (told(0, 5, 3), told(0, 8, 2)),
        (told(1, 2, 2), told(0, 8, 8)),
    ],
)
def test_nothing_goes_back_within_an_epoch(before: Pong, after: Pong) -> None:
    """Whoever says that it has rows, and then that it has not, would be at work for ever."""
    check = stream()
    check.progress(before)
    with pytest.raises(WrongRows, match=r"was at .* before"):
        check.progress(after)


def test_a_rewind_takes_back_what_was_told() -> None:
    """A later epoch begins wherever it does."""
    check = stream()
    for word in (told(0, 5, 3), told(0, 5, 3), told(0, 8, 8), told(1, 2, 2), told(1, 5, 2)):
        check.progress(word)
