"""The row stream's rule, case by case; the model in tests/property walks through all of them at once."""

from __future__ import annotations

from shoal.protocol.messages import ReceivedUpTo, ResumeFrom, Rewind, RowsFrame
from shoal.protocol.row_stream import Cursor, Receiver, Sender, Taken


def test_rows_in_order_duplicates_and_gaps() -> None:
    """New rows are taken, old ones dropped, a gap is asked for once."""
    receiver = Receiver()
    assert receiver.on_rows(RowsFrame(0, 0, 4, 0)) == Taken(0)
    assert receiver.on_rows(RowsFrame(0, 0, 4, 0)) is None
    assert receiver.on_rows(RowsFrame(0, 2, 4, 0)) == Taken(2)
    assert receiver.on_rows(RowsFrame(0, 9, 1, 0)) == ReceivedUpTo(0, 6)
    assert receiver.on_rows(RowsFrame(0, 10, 1, 0)) is None
    assert receiver.on_rows(RowsFrame(0, 6, 1, 0)) == Taken(0)
    assert receiver.on_rows(RowsFrame(0, 9, 1, 0)) == ReceivedUpTo(0, 7)


def test_a_higher_epoch_is_a_rewind_only_if_nothing_was_missed() -> None:
    """Rows of a new epoch that do not directly follow the receiver's are refused: an old row could hide below them."""
    receiver = Receiver(0, 10)
    assert receiver.on_rows(RowsFrame(1, 6, 1, 1)) == ReceivedUpTo(0, 10)
    assert receiver.on_rows(RowsFrame(1, 5, 1, 0)) == Taken(0, 5)
    assert (receiver.epoch, receiver.position) == (1, 6)
    assert receiver.on_rows(RowsFrame(0, 6, 1, 0)) is None


def test_an_answer_of_the_same_epoch_changes_nothing() -> None:
    """`from` truncates when it brings a new epoch, never otherwise."""
    receiver = Receiver(1, 10)
    assert receiver.on_from(ResumeFrom(1, 4)) is None
    assert receiver.on_from(ResumeFrom(3, 4)) == 4
    assert (receiver.epoch, receiver.position) == (3, 4)


def test_orders_to_rewind() -> None:
    """An order applies when it starts where the receiver is, or before."""
    receiver = Receiver(2, 10)
    assert receiver.on_rewind(Rewind(4, 3, 3)) is None
    assert receiver.on_rewind(Rewind(2, 3, 0)) is None
    assert receiver.on_rewind(Rewind(4, 3, 1)) == 3
    assert receiver.on_rewind(Rewind(5, 8, 4)) == 3


def test_a_sender_starts_where_both_agree() -> None:
    """The least of the receiver's position and of all rewinds that it does not know."""
    sender = Sender()
    cursor = Cursor(sender)
    sender.append(20)
    sender.rewind(1, 5)
    sender.append(10)
    sender.rewind(2, 8)
    sender.append(2)
    for have, position in (
        (ReceivedUpTo(0, 12), 5),
        (ReceivedUpTo(1, 12), 8),
        (ReceivedUpTo(2, 9), 9),
        (ReceivedUpTo(0, 3), 3),
    ):
        cursor.attach()
        cursor.on_have(have)
        assert cursor.answer() == ResumeFrom(2, position)
        assert cursor.answer() is None
    assert cursor.ready == 3


def test_a_sender_that_knows_less_waits() -> None:
    """The answer to a receiver of a later epoch comes once the sender has heard of it."""
    sender = Sender()
    cursor = Cursor(sender)
    sender.append(4)
    cursor.on_have(ReceivedUpTo(1, 2))
    assert cursor.answer() is None
    assert cursor.ready is None
    sender.rewind(1, 3)
    assert cursor.answer() == ResumeFrom(1, 2)
    assert cursor.ready == 2


def test_a_claim_beyond_the_end_is_believed() -> None:
    """A receiver that needs no rows below a position says that it has them."""
    sender = Sender()
    cursor = Cursor(sender)
    sender.append(4)
    cursor.on_have(ReceivedUpTo(0, 6))
    assert cursor.answer() == ResumeFrom(0, 6)
    assert cursor.ready is None
    sender.append(3)
    assert cursor.ready == 6


def test_evicted_rows_are_wanted_not_sent() -> None:
    """Below its base a sender has nothing; it knows what is wanted."""
    sender = Sender()
    cursor = Cursor(sender)
    sender.append(10)
    sender.evict(6)
    cursor.on_have(ReceivedUpTo(0, 4))
    assert cursor.answer() == ResumeFrom(0, 4)
    assert cursor.ready is None
    assert cursor.wanted == 4


def test_links_of_one_sender_go_their_own_ways() -> None:
    """A follower's place is its own; a rewind cuts every link's."""
    sender = Sender()
    main, follower = Cursor(sender), Cursor(sender)
    sender.append(10)
    for cursor, have in ((main, 8), (follower, 2)):
        cursor.on_have(ReceivedUpTo(0, have))
        cursor.answer()
    assert (main.ready, follower.ready) == (8, 2)
    assert (main.unsent, follower.unsent) == (2, 8)
    sender.rewind(1, 5)
    sender.append(1)
    assert (main.ready, follower.ready) == (5, 2)
