"""The journal keeps what may be asked for again, within its budget."""

from __future__ import annotations

from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import ReceivedUpTo, ResumeFrom
from shoal.protocol.row_stream import Cursor


def journal(budget_rows: int, *sizes: int) -> Journal:
    """A journal of chunks whose rows are one byte: their position."""
    made, position = Journal(1, budget_rows), 0
    Cursor(made.sender)
    for size in sizes:
        made.append(RowChunk(position, size, bytes(range(position, position + size)), position))
        position += size
    return made


def link(made: Journal) -> Cursor:
    """The journal's one link."""
    return made.sender.cursors[0]


def sent(made: Journal, elide: bool = False) -> list[tuple[int, int, bytes]]:
    """Everything that goes out now."""
    frames = []
    while (frame := made.next_frame(link(made), elide)) is not None:
        frames.append((frame[0].position, frame[0].count, frame[1]))
    return frames


def test_frames_follow_the_receiver() -> None:
    """Sending starts in the middle of a chunk when the receiver has its beginning."""
    made = journal(100, 3, 4)
    link(made).on_have(ReceivedUpTo(0, 2))
    assert link(made).answer() == ResumeFrom(0, 2)
    assert sent(made) == [(2, 1, b"\2"), (3, 4, b"\3\4\5\6")]


def test_only_sent_rows_are_evicted() -> None:
    """The budget bounds what was sent; what was not is kept whatever it takes."""
    made = journal(4, 3, 3, 3)
    assert made.sender.base == 0
    link(made).on_have(ReceivedUpTo(0, 0))
    link(made).answer()
    assert len(sent(made)) == 3
    assert made.sender.base == 3
    link(made).on_have(ReceivedUpTo(0, 0))
    link(made).answer()
    assert sent(made) == []
    assert link(made).wanted == 0


def test_rewind_cuts_a_chunk() -> None:
    """After a rewind the kept part of a chunk is still there, and new rows follow it."""
    made = journal(100, 4, 4)
    made.rewind(1, 6)
    made.append(RowChunk(6, 2, b"xy", 6))
    link(made).on_have(ReceivedUpTo(0, 7))
    assert link(made).answer() == ResumeFrom(1, 6)
    assert sent(made) == [(6, 2, b"xy")]
    link(made).on_have(ReceivedUpTo(1, 3))
    link(made).answer()
    assert sent(made) == [(3, 1, b"\3"), (4, 2, b"\4\5"), (6, 2, b"xy")]


def test_rows_that_nobody_needs_are_elided() -> None:
    """On the link to the client only the rows asked for have bytes; the others are counted."""
    made = journal(100)
    made.append(RowChunk(0, 3, b"abc", 6))
    made.append(RowChunk(3, 4, b"defg", 6))
    link(made).on_have(ReceivedUpTo(0, 0))
    link(made).answer()
    first, second = made.next_frame(link(made), elide=True), made.next_frame(link(made), elide=True)
    assert first is not None
    assert second is not None
    assert (first[0].count, first[0].elided, first[1]) == (3, 3, b"")
    assert (second[0].count, second[0].elided, second[0].reply, second[1]) == (4, 3, 1, b"g")


def test_a_journal_that_stands_by_keeps_to_its_budget() -> None:
    """Nobody is to get the rows of a hop that stands by, so none of them are unsent."""
    made = journal(4)
    made.stand_by(True)
    for position in range(0, 12, 3):
        made.append(RowChunk(position, 3, b"abc", position))
    assert made.unsent == 0
    assert made.sender.base == 6
    made.stand_by(False)
    link(made).on_have(ReceivedUpTo(0, 9))
    link(made).answer()
    assert sent(made) == [(9, 3, b"abc")]


def test_a_party_that_has_ended_keeps_nothing() -> None:
    """No row is there to be sent any more, whatever a link asks for."""
    made = journal(100, 3, 4)
    assert made.size_bytes == 7
    made.clear()
    assert made.size_bytes == 0
    link(made).on_have(ReceivedUpTo(0, 2))
    link(made).answer()
    assert sent(made) == []
