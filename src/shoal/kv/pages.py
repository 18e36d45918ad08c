"""Which page of the KV cache belongs to whom: integers only, no tensors."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.errors import GrantExceeded, ServerFull
from shoal.nn.attention import PAGE_TOKENS
from shoal.types import Span

RETRY_AFTER_S = 2.0


def pages_for(num_tokens: int) -> int:
    """Pages that one block needs for this many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class SessionPages:
    """One session's pages: a list per block of its span, and how many tokens each block holds."""

    def __init__(self, span: Span, max_tokens: int) -> None:
        self.span = span
        self.max_tokens = max_tokens
        self.granted = len(span) * pages_for(max_tokens)
        self.num_tokens = 0
        self.tables: dict[int, list[int]] = {block: [] for block in span.blocks()}


class PageAllocator:
    """Hands out pages of PAGE_TOKENS tokens of one block each. What is granted can always be used: no overcommitment."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.granted = 0
        self._free = list(range(capacity - 1, -1, -1))
        self._sessions: dict[str, SessionPages] = {}

    @property
    def free(self) -> int:
        """Pages that nobody uses now, granted or not."""
        return len(self._free)

    def __len__(self) -> int:
        return len(self._sessions)

    def __getitem__(self, session: str) -> SessionPages:
        return self._sessions[session]

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    def open(self, session: str, span: Span, max_tokens: int) -> SessionPages:
        """Grant a session room for `max_tokens` tokens in the blocks of its span.

        Raises ServerFull when the pages not yet granted are too few, ValueError for a session that is open or a grant of
        nothing.
        """
        if max_tokens < 1 or span.start >= span.stop:
            raise ValueError(f"{max_tokens} tokens in blocks {span} are nothing to grant")
        if session in self._sessions:
            raise ValueError(f"session {session} is open already")
        pages = SessionPages(span, max_tokens)
        if self.granted + pages.granted > self.capacity:
            left = (self.capacity - self.granted) // len(span) * PAGE_TOKENS
            raise ServerFull(f"{max_tokens} tokens do not fit: the cache has room for {left} more", RETRY_AFTER_S)
        self.granted += pages.granted
        self._sessions[session] = pages
        return pages

    def grow(self, session: str, num_tokens: int) -> list[int]:
        """Give the session pages for `num_tokens` tokens; returns the new ones, which hold somebody's old numbers.

        Raises GrantExceeded beyond the grant.
        """
        pages = self._sessions[session]
        if num_tokens > pages.max_tokens:
            raise GrantExceeded(f"{num_tokens} tokens are more than the {pages.max_tokens} granted")
        fresh: list[int] = []
        for table in pages.tables.values():
            count = pages_for(num_tokens) - len(table)
            new = [self._free.pop() for _ in range(count)]
            table.extend(new)
            fresh.extend(new)
        pages.num_tokens = max(pages.num_tokens, num_tokens)
        return fresh

    def truncate(self, session: str, num_tokens: int) -> None:
        """Take back what lies beyond `num_tokens` tokens; raises ValueError for a negative number."""
        if num_tokens < 0:
            raise ValueError(f"a session cannot have {num_tokens} tokens")
        pages = self._sessions[session]
        pages.num_tokens = min(pages.num_tokens, num_tokens)
        keep = pages_for(pages.num_tokens)
        for table in pages.tables.values():
            self._release(table[keep:])
            del table[keep:]

    def close(self, session: str) -> None:
        """Take back everything; closing twice is harmless."""
        pages = self._sessions.pop(session, None)
        if pages is not None:
            self.granted -= pages.granted
            for table in pages.tables.values():
                self._release(table)

    def _release(self, pages: Iterable[int]) -> None:
        self._free.extend(reversed(list(pages)))
