"""The page allocator as a state machine, against sets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import GrantExceeded, ServerFull
from shoal.kv.pages import PageAllocator, pages_for
from shoal.nn.attention import PAGE_TOKENS
from shoal.types import Span

CAPACITY = 40

sessions = st.sampled_from("abcd")
spans = st.sampled_from([Span(0, 1), Span(3, 6), Span(2, 7)])
tokens = st.integers(0, 5 * PAGE_TOKENS)


class Allocator(RuleBasedStateMachine):
    """Opens, grows, truncates and closes sessions; the model knows each one's span, grant and length."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = PageAllocator(CAPACITY)
        self.model: dict[str, tuple[Span, int, int]] = {}

    def granted(self) -> int:
        """Pages that are promised."""
        return sum(len(span) * pages_for(most) for span, most, _ in self.model.values())

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
            self.model[session] = span, most, 0

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
        else:
            fresh = self.pages.grow(session, count)
            assert len(fresh) == before - self.pages.free
            assert len(fresh) == len(span) * max(0, pages_for(count) - pages_for(length))
            self.model[session] = span, most, max(length, count)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(-1, 5 * PAGE_TOKENS))
    def truncate(self, data: st.DataObject, count: int) -> None:
        """A session gets shorter, never longer."""
        session = data.draw(st.sampled_from(sorted(self.model)))
        span, most, length = self.model[session]
        if count < 0:
            with pytest.raises(ValueError):
                self.pages.truncate(session, count)
            return
        self.pages.truncate(session, count)
        self.model[session] = span, most, min(length, count)

    @rule(session=sessions)
    def close(self, session: str) -> None:
        """Closing is harmless, however often."""
        self.pages.close(session)
        self.model.pop(session, None)

    @invariant()
    def every_page_has_one_owner(self) -> None:
        """Tables fit lengths, no page is held twice, and used and free add up."""
        held: Counter[int] = Counter()
        for session, (span, most, length) in self.model.items():
            pages = self.pages[session]
            assert (pages.span, pages.max_tokens, pages.num_tokens) == (span, most, length)
            assert pages.table.shape == (len(span), pages_for(most))
            assert (pages.table[:, pages_for(length) :] == -1).all()
            for table in map(pages.of, span.blocks()):
                assert len(table) == pages_for(length)
                held.update(table)
        assert all(count == 1 and 0 <= page < CAPACITY for page, count in held.items())
        assert self.pages.free == CAPACITY - len(held)
        assert self.pages.granted == self.granted() <= CAPACITY
        assert len(self.pages) == len(self.model)


Allocator.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestPageAllocator = Allocator.TestCase
