"""The page allocator as a state machine, against sets and against what would lie in the pages."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import GrantExceeded, ServerFull
from shoal.kv.pages import PAGE_TOKENS, PageAllocator, pages_for
from shoal.types import Span

CAPACITY = 40
MAX_SHARED = 5

sessions = st.sampled_from("abcd")
spans = st.sampled_from([Span(3, 5), Span(3, 5), Span(2, 7)])
tokens = st.integers(0, 5 * PAGE_TOKENS) | st.integers(1, 5).map(PAGE_TOKENS.__mul__)
prefixes = st.sampled_from("pq")


class Allocator(RuleBasedStateMachine):
    """Opens, grows, truncates, shares, adopts and closes; the model knows spans, grants, lengths and what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = PageAllocator(CAPACITY, MAX_SHARED)
        self.model: dict[str, tuple[Span, int, int]] = {}
        self.written = itertools.count()
        self.memory: dict[int, int] = {}
        """What lies in each page."""
        self.own: dict[str, list[list[int]]] = {}
        """What each session's columns must hold, block by block."""
        self.shared: dict[bytes, list[int]] = {}
        """What was last shared under a key."""

    def granted(self) -> int:
        """Pages that are promised."""
        return sum(len(span) * pages_for(most) for span, most, _ in self.model.values())

    def write(self, session: str, column: int) -> None:
        """The session writes into a column of its own."""
        self.own[session][column] = [next(self.written) for _ in self.own[session][column]]
        for page, number in zip(self.pages[session].table[:, column].tolist(), self.own[session][column], strict=True):
            self.memory[page] = number

    @rule(session=sessions, span=spans, most=tokens)
    def open(self, session: str, span: Span, most: int) -> None:
        """A grant is refused only when it is nothing, a second one, or too much."""
        if session in self.model or most < 1:
            with pytest.raises(ValueError):
                self.pages.open(session, span, most)
        elif self.granted() + len(span) * pages_for(most) > CAPACITY:
            with pytest.raises(ServerFull) as caught:
                self.pages.open(session, span, most)
            assert caught.value.retry_after > 0
        else:
            self.pages.open(session, span, most)
            self.model[session], self.own[session] = (span, most, 0), []

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=tokens)
    def grow(self, data: st.DataObject, count: int) -> None:
        """Within its grant a session always gets its pages, and hears which of them are new."""
        session = data.draw(st.sampled_from(sorted(self.model)))
        span, most, length = self.model[session]
        before = self.pages.free
        if count > most:
            with pytest.raises(GrantExceeded):
                self.pages.grow(session, count)
            assert self.pages.free == before
            return
        fresh = self.pages.grow(session, count)
        assert len(fresh) == before - self.pages.free
        assert len(fresh) == len(span) * max(0, pages_for(count) - pages_for(length))
        self.model[session] = span, most, max(length, count)
        self.own[session] += [[-1] * len(span) for _ in range(pages_for(max(length, count)) - pages_for(length))]
        for column in range(length // PAGE_TOKENS, pages_for(count)):
            self.write(session, column)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(-1, 5 * PAGE_TOKENS))
    def truncate(self, data: st.DataObject, count: int) -> None:
        """A session gets shorter, never longer; what it may write to afterwards is its own."""
        session = data.draw(st.sampled_from(sorted(self.model)))
        span, most, length = self.model[session]
        if count < 0:
            with pytest.raises(ValueError):
                self.pages.truncate(session, count)
            return
        for old, new in self.pages.truncate(session, count):
            self.memory[new] = self.memory[old]
        length = min(length, count)
        self.model[session] = span, most, length
        del self.own[session][pages_for(length) :]
        self.every_column_holds_what_its_session_wrote()
        if length % PAGE_TOKENS:
            self.write(session, length // PAGE_TOKENS)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), prefix=prefixes)
    def share(self, data: st.DataObject, prefix: str) -> None:
        """A full column can be found from then on, if there is a place for it and its key is new."""
        session = data.draw(st.sampled_from(sorted(self.model)))
        span, _, length = self.model[session]
        column = data.draw(st.integers(0, length // PAGE_TOKENS))
        key = f"{prefix}{len(span)}".encode()
        if (column + 1) * PAGE_TOKENS > length:
            with pytest.raises(ValueError):
                self.pages.share(session, column, key)
        elif self.pages.share(session, column, key) is not None:
            self.shared[key] = list(self.own[session][column])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), prefix=prefixes)
    def adopt(self, data: st.DataObject, prefix: str) -> None:
        """A session gets just what was shared under the key, within its grant and at the border of a page."""
        session = data.draw(st.sampled_from(sorted(self.model)))
        span, most, length = self.model[session]
        key = f"{prefix}{len(span)}".encode()
        try:
            place = self.pages.adopt(session, key)
        except GrantExceeded:
            assert length + PAGE_TOKENS > most
        except ValueError:
            assert length % PAGE_TOKENS
        else:
            if place is not None:
                assert length % PAGE_TOKENS == 0
                assert 0 <= place < MAX_SHARED
                self.model[session] = span, most, length + PAGE_TOKENS
                self.own[session].append(list(self.shared[key]))

    @rule(session=sessions)
    def close(self, session: str) -> None:
        """Closing is harmless, however often."""
        self.pages.close(session)
        self.model.pop(session, None)
        self.own.pop(session, None)

    def teardown(self) -> None:
        """When everybody has gone all pages are free, and can be had."""
        for session in list(self.model):
            self.close(session)
        assert (self.pages.free, self.pages.granted) == (CAPACITY, 0)
        self.pages.open("last", Span(0, 1), CAPACITY * PAGE_TOKENS)
        assert sorted(self.pages.grow("last", CAPACITY * PAGE_TOKENS)) == list(range(CAPACITY))
        assert self.pages.num_shared == 0

    @invariant()
    def every_page_is_used_or_free(self) -> None:
        """Tables fit lengths, only shared pages are held twice, and used and free add up."""
        held: Counter[int] = Counter()
        common: set[int] = set()
        for session, (span, most, length) in self.model.items():
            pages = self.pages[session]
            assert (pages.span, pages.max_tokens, pages.num_tokens) == (span, most, length)
            assert pages.table.shape == (len(span), pages_for(most))
            assert pages.num_pages == pages_for(length)
            assert (pages.table[:, pages_for(length) :] == -1).all()
            for table in map(pages.of, span.blocks()):
                assert len(table) == pages_for(length)
                held.update(table)
                common.update(page for page, key in zip(table, pages.shared, strict=True) if key is not None)
        assert all((count == 1 or page in common) and 0 <= page < CAPACITY for page, count in held.items())
        assert self.pages.free == CAPACITY - len(held)
        assert self.pages.free >= self.granted() - held.total()
        assert self.pages.granted == self.granted() <= CAPACITY
        assert self.pages.num_shared <= MAX_SHARED
        assert len(self.pages) == len(self.model)

    @invariant()
    def every_column_holds_what_its_session_wrote(self) -> None:
        """Or what was shared with it: nobody writes into anybody's pages."""
        for session, columns in self.own.items():
            table = self.pages[session].table
            for column, numbers in enumerate(columns):
                assert [self.memory[page] for page in table[:, column].tolist()] == numbers


Allocator.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPageAllocator = Allocator.TestCase
