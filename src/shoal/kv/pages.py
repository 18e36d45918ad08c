"""Which page of the KV cache belongs to whom: integers only, no tensors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shoal.errors import GrantExceeded, ServerFull
from shoal.nn.attention import PAGE_TOKENS
from shoal.types import Span

RETRY_AFTER_S = 2.0


def pages_for(num_tokens: int) -> int:
    """Pages that one block needs for this many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class SessionPages:
    """One session's pages, and how many tokens each block of its span holds.

    `table` [blocks of the span, pages granted] in int32: each block's pages in the order of their tokens, of which the first
    `num_pages` are in use and the others −1.
    """

    def __init__(self, span: Span, max_tokens: int) -> None:
        self.span = span
        self.max_tokens = max_tokens
        self.granted = len(span) * pages_for(max_tokens)
        self.num_tokens = 0
        self.num_pages = 0
        self.table: NDArray[np.int32] = np.full((len(span), pages_for(max_tokens)), -1, dtype=np.int32)

    def of(self, block: int) -> list[int]:
        """One block's pages in use, in the order of their tokens."""
        pages: list[int] = self.table[block - self.span.start, : self.num_pages].tolist()
        return pages


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
        first, last = pages.num_pages, max(pages.num_pages, pages_for(num_tokens))
        fresh: list[int] = []
        for row in range(len(pages.span)):
            new = [self._free.pop() for _ in range(last - first)]
            pages.table[row, first:last] = new
            fresh.extend(new)
        pages.num_pages = last
        pages.num_tokens = max(pages.num_tokens, num_tokens)
        return fresh

    def truncate(self, session: str, num_tokens: int) -> None:
        """Take back what lies beyond `num_tokens` tokens; raises ValueError for a negative number."""
        if num_tokens < 0:
            raise ValueError(f"a session cannot have {num_tokens} tokens")
        pages = self._sessions[session]
        pages.num_tokens = min(pages.num_tokens, num_tokens)
        self._shrink(pages, pages_for(pages.num_tokens))

    def close(self, session: str) -> None:
        """Take back everything; closing twice is harmless."""
        pages = self._sessions.pop(session, None)
        if pages is not None:
            self.granted -= pages.granted
            self._shrink(pages, 0)

    def _shrink(self, pages: SessionPages, keep: int) -> None:
        for row in range(len(pages.span)):
            self._release(pages.table[row, keep : pages.num_pages].tolist())
        pages.table[:, keep:] = -1
        pages.num_pages = min(pages.num_pages, keep)

    def _release(self, pages: Iterable[int]) -> None:
        self._free.extend(reversed(list(pages)))
