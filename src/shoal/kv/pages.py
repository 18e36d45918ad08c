"""Which page of the KV cache belongs to whom: integers only, no tensors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shoal.errors import GrantExceeded, ServerFull
from shoal.types import Span

PAGE_TOKENS = 64
"""Tokens of one page. Attention walks pages of this width, so another value gives other bits."""

RETRY_AFTER_S = 2.0


def pages_for(num_tokens: int) -> int:
    """Pages that one block needs for this many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class SessionPages:
    """One session's pages, and how many tokens each block of its span holds.

    `table` [blocks of the span, pages granted] in int32: each block's pages in the order of their tokens, of which the first
    `num_pages` are in use and the others −1. `shared` names, for each column in use, what other sessions may find it by, and
    nobody writes to it; None is the session's own.
    """

    def __init__(self, span: Span, max_tokens: int) -> None:
        self.span = span
        self.max_tokens = max_tokens
        self.granted = len(span) * pages_for(max_tokens)
        self.num_tokens = 0
        self.table: NDArray[np.int32] = np.full((len(span), pages_for(max_tokens)), -1, dtype=np.int32)
        self.shared: list[bytes | None] = []
        self._address = self.table.ctypes.data  # numpy takes microseconds to say it

    def address_of(self, block: int) -> int:
        """Where one block's row of `table` begins in memory."""
        return self._address + (block - self.span.start) * self.table.strides[0]

    def extend(self, fresh: list[int]) -> None:
        """These pages of the session's own, the same number for each block, are its next columns."""
        new, first = len(fresh) // len(self.span), self.num_pages
        self.table[:, first : first + new] = np.array(fresh, dtype=np.int32).reshape(len(self.span), new)
        self.shared += [None] * new

    def keep(self, num_tokens: int) -> None:
        """At most so many tokens are left; their pages stay until the allocator takes them back."""
        self.num_tokens = min(self.num_tokens, num_tokens)

    def adopt(self, column: SharedColumn, key: bytes) -> None:
        """A full column that others use too is the session's next."""
        self.table[:, self.num_pages] = column.pages
        self.shared.append(key)
        self.num_tokens += PAGE_TOKENS

    @property
    def num_pages(self) -> int:
        """Pages of each block in use."""
        return len(self.shared)

    def of(self, block: int) -> list[int]:
        """One block's pages in use, in the order of their tokens."""
        pages: list[int] = self.table[block - self.span.start, : self.num_pages].tolist()
        return pages


class SharedColumn:
    """A full page of every block of a span, which nobody writes to; `place` is where its output rows are kept."""

    def __init__(self, pages: list[int], place: int) -> None:
        self.pages = pages
        self.place = place
        self.users = 1

    def join(self) -> None:
        """One more session uses it."""
        self.users += 1

    def leave(self) -> None:
        """One session less uses it."""
        self.users -= 1


class PageAllocator:
    """Hands out pages of PAGE_TOKENS tokens of one block each. What is granted can always be used: no overcommitment.

    A column is a page of every block of a span. Full ones may be shared under a key, at most `max_shared`. One that no session
    uses any more is kept until its pages or its place are needed, the longest unused goes first, and until then its pages count
    as free. A session's shared columns count in its grant like its own, so they never take what is granted to others.
    """

    def __init__(self, capacity: int, max_shared: int = 0) -> None:
        self.capacity = capacity
        self.granted = 0
        self._free = list(range(capacity - 1, -1, -1))
        self.max_shared = max_shared
        self._places = list(range(max_shared - 1, -1, -1))
        self._sessions: dict[str, SessionPages] = {}
        self._shared: dict[bytes, SharedColumn] = {}
        self._unused: dict[bytes, None] = {}
        self._unused_pages = 0

    @property
    def free(self) -> int:
        """Pages that no session uses now, granted or not."""
        return len(self._free) + self._unused_pages

    @property
    def num_shared(self) -> int:
        """Columns that sessions can find."""
        return len(self._shared)

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
        pages.num_tokens = max(pages.num_tokens, num_tokens)
        if first == last:
            return []
        fresh = self._take(len(pages.span) * (last - first))
        pages.extend(fresh)
        return fresh

    def truncate(self, session: str, num_tokens: int) -> list[tuple[int, int]]:
        """Take back what lies beyond `num_tokens` tokens; raises ValueError for a negative number.

        If the last page that remains is used by others too, the session gets one of its own for each block: returns pairs
        (old, new), whose tokens are for the caller to copy.
        """
        if num_tokens < 0:
            raise ValueError(f"a session cannot have {num_tokens} tokens")
        pages = self._sessions[session]
        pages.keep(num_tokens)
        self._shrink(pages, pages_for(pages.num_tokens))
        return self._unshare_last(pages) if pages.num_tokens % PAGE_TOKENS else []

    def close(self, session: str) -> None:
        """Take back everything; closing twice is harmless."""
        pages = self._sessions.pop(session, None)
        if pages is not None:
            self.granted -= pages.granted
            self._shrink(pages, 0)

    def share(self, session: str, column: int, key: bytes) -> int | None:
        """Let others find a full column of this session, whose tokens nobody changes from now on.

        Returns the place for its output rows; None when there is none, or the key is known already. Raises ValueError for a
        column that is not full.
        """
        pages = self._sessions[session]
        if (column + 1) * PAGE_TOKENS > pages.num_tokens:
            raise ValueError(f"page {column} of session {session} is not full")
        if key in self._shared or pages.shared[column] is not None:
            return None
        if not self._places and not self._evict():
            return None
        place = self._places.pop()
        self._shared[key] = SharedColumn(pages.table[:, column].tolist(), place)
        pages.shared[column] = key
        return place

    def adopt(self, session: str, key: bytes) -> int | None:
        """Make a shared column the session's next; returns the place of its output rows, None for a key that is not known.

        Raises GrantExceeded beyond the grant, ValueError for a session whose last page is not full.
        """
        pages, found = self._sessions[session], self._shared.get(key)
        if found is None:
            return None
        if pages.num_tokens % PAGE_TOKENS:
            raise ValueError(f"session {session} is in the middle of a page")
        if pages.num_tokens + PAGE_TOKENS > pages.max_tokens:
            raise GrantExceeded(f"a page more is beyond the {pages.max_tokens} tokens granted")
        if found.users == 0:
            del self._unused[key]
            self._unused_pages -= len(found.pages)
        found.join()
        pages.adopt(found, key)
        return found.place

    def _take(self, count: int) -> list[int]:
        """Pages that nobody uses; what is granted is there, if need be after shared ones that nobody uses are forgotten."""
        while len(self._free) < count and self._evict():
            pass
        return [self._free.pop() for _ in range(count)]

    def _evict(self) -> bool:
        """Forget the shared column that has been unused for longest, if there is one."""
        key = next(iter(self._unused), None)
        if key is None:
            return False
        del self._unused[key]
        column = self._forget(key)
        self._unused_pages -= len(column.pages)
        self._release(column.pages)
        return True

    def _forget(self, key: bytes) -> SharedColumn:
        column = self._shared.pop(key)
        self._places.append(column.place)
        return column

    def _unshare_last(self, pages: SessionPages) -> list[tuple[int, int]]:
        """The last column becomes the session's own: as it is if nobody else uses it, else in new pages."""
        key, pages.shared[-1] = pages.shared[-1], None
        if key is None:
            return []
        column = self._shared[key]
        if column.users == 1:
            self._forget(key)
            return []
        column.leave()
        own = self._take(len(column.pages))
        pages.table[:, pages.num_pages - 1] = own
        return list(zip(column.pages, own, strict=True))

    def _shrink(self, pages: SessionPages, keep: int) -> None:
        """Give up columns, the last one first: what is found only through those before it is forgotten before them."""
        own = [column for column in range(keep, pages.num_pages) if pages.shared[column] is None]
        self._release(pages.table[:, own].ravel().tolist())
        while pages.num_pages > keep:
            key = pages.shared.pop()
            if key is not None:
                self._leave(key)
        pages.table[:, keep:] = -1

    def _leave(self, key: bytes) -> None:
        column = self._shared[key]
        column.leave()
        if column.users == 0:
            self._unused[key] = None
            self._unused_pages += len(column.pages)

    def _release(self, pages: Iterable[int]) -> None:
        self._free.extend(reversed(list(pages)))
