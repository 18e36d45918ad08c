"""So many at once."""

from __future__ import annotations

from shoal.transport.slots import Slots


def test_the_oldest_of_the_busiest_makes_room() -> None:
    """Whoever has one place keeps it as long as another source has two."""
    slots: Slots[str] = Slots(3)
    assert [slots.enter(name, source) for name, source in (("a1", "a"), ("b1", "b"), ("b2", "b"))] == [None] * 3
    assert slots.enter("c1", "c") == "b1"
    assert slots.enter("b3", "b") == "b2"
    assert slots.enter("d1", "d") == "a1"  # all have one: the oldest goes
    assert len(slots) == 3


def test_places_are_given_back() -> None:
    """One that was left is free; to enter or to leave twice changes nothing."""
    slots: Slots[str] = Slots(2)
    for _ in range(3):
        assert slots.enter("one", "a") is None
    assert slots.enter("two", "a") is None
    slots.leave("one")
    slots.leave("one")
    assert slots.enter("three", "a") is None
    assert ("one" in slots, "two" in slots) == (False, True)
