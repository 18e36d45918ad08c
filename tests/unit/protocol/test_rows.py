"""Rows inside a party: positions, cuts, and what of a frame is needed."""

from __future__ import annotations

import pytest

from shoal.protocol.messages import RowsFrame
from shoal.protocol.rows import Rows


def test_rows_are_cut_by_position() -> None:
    """Both parts keep what the rows came in."""
    frame = RowsFrame(1, 10, 4, 0)
    rows = Rows("a", 10, "wxyz", frame, 3.0, 4.0)
    assert (rows.num_rows, rows.stop) == (4, 14)
    assert rows.ending_at(13) == Rows("a", 10, "wxy", frame, 3.0, 4.0)
    assert rows.starting_at(13) == Rows("a", 13, "z", frame, 3.0, 4.0)


@pytest.mark.parametrize(("reply", "needed_from"), [(-1, 10), (0, 14), (1, 13), (4, 10)])
def test_what_the_client_needs_is_counted_from_the_frames_end(reply: int, needed_from: int) -> None:
    """Whichever of the frame's rows these are."""
    rows = Rows("a", 10, "wxyz", RowsFrame(1, 10, 4, 0, reply))
    assert rows.needed_from == needed_from
    assert rows.starting_at(12).needed_from == needed_from


def test_rows_without_a_frame_are_all_needed() -> None:
    """They were made here."""
    assert Rows("a", 7, "wx").needed_from == 7
