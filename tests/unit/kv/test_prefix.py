"""What is shared, with whom, until when."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.kv.pages import PageAllocator
from shoal.kv.prefix import PrefixCache, PrefixHash, Scope
from shoal.types import Span

ROWS = numbers(1, 200, 8)
SPAN = Span(2, 4)
SCOPE = Scope("alice", SPAN, "torch/float32/1234", b"a rope")


def keys_of(rows: Tensor, *cuts: int, scope: Scope = SCOPE) -> list[bytes]:
    """The keys of the full pages of rows that come in pieces."""
    trail = PrefixHash.begin(scope)
    for first, last in zip((0, *cuts), (*cuts, rows.shape[0]), strict=True):
        trail, _ = trail.extended(rows[first:last])
    return list(trail.keys[1:])


class Desk:
    """An allocator and prefixes; outputs are the inputs and a number, so that one sees who computed them."""

    def __init__(self, capacity: int = 40, max_shared: int = 8, between_clients: bool = False) -> None:
        self.pages = PageAllocator(capacity, max_shared)
        self.prefixes = PrefixCache(self.pages, 8, between_clients=between_clients)
        self.computed = 0

    def open(self, session: str, client: str = "alice", span: Span = SPAN, most: int = 256) -> None:
        """Room for a session."""
        self.pages.open(session, span, most)
        self.prefixes.open(session, span, client)

    def step(self, session: str, rows: Tensor) -> Tensor:
        """What the runner does; returns the outputs."""
        ahead = self.prefixes.find(session, rows)
        found, position = ahead.outputs.shape[0], self.pages[session].num_tokens
        own = rows[found:] + 1000 * float(ord(session[0]))
        self.computed += own.shape[0]
        self.pages.grow(session, position + own.shape[0])
        self.prefixes.keep(session, position, own, ahead)
        return torch.cat([ahead.outputs, own])

    def truncate(self, session: str, position: int) -> None:
        """A rewind."""
        self.pages.truncate(session, position)
        self.prefixes.truncate(session, position)

    def close(self, session: str) -> None:
        """The session's end."""
        self.pages.close(session)
        self.prefixes.close(session)


@pytest.mark.parametrize("cuts", [(), (64, 128), (1, 2, 3, 65), (63, 64, 190), (100,), (199,)])
def test_keys_do_not_depend_on_how_rows_came(cuts: tuple[int, ...]) -> None:
    """One key for each full page."""
    assert keys_of(ROWS, *cuts) == keys_of(ROWS)
    assert len(keys_of(ROWS)) == 3


def test_a_key_depends_on_every_row_before_it_and_on_the_scope() -> None:
    """One bit in the first row changes all keys, one in the last page only its own, and every field of the scope all."""
    usual = keys_of(ROWS)
    for row, same in ((0, 0), (63, 0), (64, 1), (191, 2), (192, 3)):
        other = ROWS.clone()
        other[row, 3] = torch.nextafter(other[row, 3], torch.tensor(9.0))
        assert [one == two for one, two in zip(keys_of(other), usual, strict=True)] == [True] * same + [False] * (
            3 - same
        )
    for change in (
        {"sharer": "bob"},
        {"span": Span(2, 5)},
        {"span": Span(1, 4)},
        {"numerics": "torch/int8/1234"},
        {"positions": b"another rope"},
        {"granted_tokens": 256},
    ):
        assert not set(keys_of(ROWS, scope=msgspec.structs.replace(SCOPE, **change))) & set(usual)
    assert not set(keys_of(ROWS[64:])) & set(usual)


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, 128, 130, 199, 200, 500])
def test_after_a_rewind_keys_are_right_or_none(cut: int) -> None:
    """Within the page that is being filled and at borders they go on; inside earlier pages there are none until a border."""
    other = torch.cat([ROWS[: min(cut, 200)], numbers(2, 100, 8)])
    trail, _ = PrefixHash.begin(SCOPE).extended(ROWS[:130])
    trail, _ = trail.extended(ROWS[130:])
    after = trail.truncated(cut)
    known = cut % 64 == 0 or cut >= 192
    assert (after.states is not None) == known
    after, keys = after.extended(numbers(2, 100, 8))
    assert list(after.keys[1:]) == (keys_of(other) if known else keys_of(other)[: cut // 64])
    assert all(keys_of(other)[page] == key for page, key in keys.items())
    assert after.truncated(64).states is not None or cut < 64


def test_a_second_session_computes_only_the_rest() -> None:
    """Whole pages are found, and their outputs are those of whoever computed them; the first session may be gone or not."""
    desk = Desk()
    desk.open("a")
    first = desk.step("a", ROWS)
    for session in ("b", "c"):
        desk.open(session)
        desk.computed = 0
        outputs = desk.step(session, ROWS[:150])
        assert torch.equal(outputs[:128], first[:128])
        assert torch.equal(outputs[128:], ROWS[128:150] + 1000 * ord(session))
        assert desk.computed == 22
        assert (desk.pages[session].table[:, :2] == desk.pages["a"].table[:, :2]).all() if session == "b" else True
        if session == "b":
            desk.close("a")
            desk.close("b")


def test_pages_that_were_decoded_are_found_too() -> None:
    """Row by row, over borders; chunks that do not begin at a border find nothing, and the next ones do."""
    desk = Desk()
    desk.open("a")
    first = torch.cat([desk.step("a", ROWS[at : at + 1]) for at in range(200)])
    desk.open("b")
    desk.computed = 0
    parts = [desk.step("b", ROWS[at:last]) for at, last in ((0, 100), (100, 128), (128, 200))]
    assert desk.computed == 36 + 28 + 8
    assert torch.equal(torch.cat(parts)[:64], first[:64])
    assert torch.equal(torch.cat(parts)[128:192], first[128:192])


def test_clients_share_only_if_the_server_says_so() -> None:
    """And never sessions over different blocks."""
    for between in (False, True):
        desk = Desk(between_clients=between)
        desk.open("a")
        desk.step("a", ROWS[:64])
        desk.open("b", client="bob")
        desk.open("c", span=Span(2, 3))
        desk.computed = 0
        desk.step("b", ROWS[:64])
        assert desk.computed == (0 if between else 64)
        desk.computed = 0
        desk.step("c", ROWS[:64])
        assert desk.computed == 64


def test_rewinding_into_a_shared_page_leaves_the_others_theirs() -> None:
    """The session goes on with other rows in pages of its own, and neither sees the other's."""
    desk = Desk()
    desk.open("a")
    first = desk.step("a", ROWS[:128])
    desk.open("b")
    desk.step("b", ROWS[:128])
    table = desk.pages["a"].table.copy()
    desk.truncate("b", 100)
    desk.step("b", -ROWS[100:128])
    assert (desk.pages["a"].table == table).all()
    assert (desk.pages["b"].table[:, 0] == table[:, 0]).all()
    assert not set(desk.pages["b"].table[:, 1]) & set(table[:, 1])
    desk.open("c")
    desk.computed = 0
    assert torch.equal(desk.step("c", ROWS[:128]), first)
    assert desk.computed == 0
    for session in "abc":
        desk.close(session)
    assert desk.pages.free == 40


def test_a_rewind_within_the_page_that_fills_goes_on_being_kept() -> None:
    """Rejected drafts: what is kept is the rows that stayed."""
    desk = Desk()
    desk.open("a")
    desk.step("a", ROWS[:60])
    desk.step("a", -ROWS[60:63])
    desk.truncate("a", 61)
    last = desk.step("a", ROWS[61:64])
    rows = torch.cat([ROWS[:60], -ROWS[60:61], ROWS[61:64]])
    desk.open("b")
    desk.computed = 0
    found = desk.step("b", rows)
    assert desk.computed == 0
    assert torch.equal(found[61:], last)
    assert torch.equal(found[:60], ROWS[:60] + 1000 * ord("a"))


def test_what_was_rewound_out_of_sight_is_not_kept() -> None:
    """After going back into an earlier page the session shares nothing, until it is back at a border that it knows."""
    desk = Desk()
    desk.open("a")
    desk.step("a", ROWS[:130])
    desk.truncate("a", 100)
    desk.step("a", ROWS[100:200])
    assert desk.pages.num_shared == 1  # the second page became the session's own again
    desk.truncate("a", 64)
    desk.step("a", ROWS[64:192])
    assert desk.pages.num_shared == 3


def test_the_longest_unused_goes_first_and_ends_before_beginnings() -> None:
    """When pages or places are needed; what a session uses stays."""
    desk = Desk(capacity=12, max_shared=8)
    desk.open("a", most=192)
    desk.step("a", ROWS[:192])
    desk.close("a")
    assert (desk.pages.free, desk.pages.num_shared) == (12, 3)
    desk.open("b", client="bob", most=256)
    desk.step("b", -ROWS[:200])
    assert desk.pages.num_shared == 2 + 3
    desk.open("c", most=128)
    desk.computed = 0
    desk.step("c", ROWS[:128])
    assert desk.computed == 0
    few = Desk(max_shared=2)
    few.open("a")
    few.step("a", ROWS[:192])
    assert few.pages.num_shared == 2
    few.truncate("a", 64)
    few.open("b", client="bob")
    few.step("b", -ROWS[:64])
    few.open("c")
    few.computed = 0
    few.step("c", ROWS[:192])
    assert few.computed == 128


def test_without_places_nothing_is_kept() -> None:
    """The default: no hashing, no sharing."""
    desk = Desk(max_shared=0)
    for session in "ab":
        desk.open(session)
        desk.step(session, ROWS)
        desk.truncate(session, 100)
        desk.step(session, ROWS[100:])
    assert desk.computed == 600
    assert desk.pages.num_shared == 0


def test_pages_that_changed_unnoticed_are_not_hashed_on() -> None:
    """A rewind that only the allocator heard of is a mistake, and not a wrong key."""
    desk = Desk()
    desk.open("a")
    desk.step("a", ROWS[:100])
    desk.pages.truncate("a", 80)
    with pytest.raises(ValueError, match="100 were hashed"):
        desk.step("a", ROWS[80:])
