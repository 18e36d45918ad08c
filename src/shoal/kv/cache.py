"""The KV cache: pages with an owner, and the numbers in them."""

from __future__ import annotations

from torch import Tensor

from shoal.kv.cache_storage import FLOATS, CacheShape, copy_pages, make_storage
from shoal.kv.hadamard import turned
from shoal.kv.pages import PAGE_TOKENS, PageAllocator
from shoal.types import Span


class KVCache:
    """Keys and values in `storage` (one of storage.KV_DTYPES), and the allocator `pages` that says whose they are.

    `max_shared`: how many pages of a span, in all of its blocks, are kept for other sessions (`prefix`).
    """

    def __init__(
        self, shape: CacheShape, num_pages: int, dtype: str = "float32", device: str = "cpu", max_shared: int = 0
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.pages = PageAllocator(num_pages, max_shared)
        self.storage = make_storage(shape, num_pages, dtype, device)

    @property
    def form(self) -> str:
        """How keys and values are kept, as numerics name it: caches of one form hold equal bits of equal rows."""
        return self.dtype if self.dtype in FLOATS else f"{self.dtype}-turned"

    def turned(self, query: Tensor) -> Tensor:
        """Queries [n, heads, head_dim] in fp32 as they meet the keys of this cache."""
        return turned(query, self.storage.turning)

    def open(self, session: str, span: Span, max_tokens: int) -> None:
        """Grant a session its pages; raises ServerFull."""
        self.pages.open(session, span, max_tokens)

    def close(self, session: str) -> None:
        """Free a session's pages; closing twice is harmless."""
        self.pages.close(session)

    def grow(self, session: str, num_tokens: int) -> None:
        """Make room for `num_tokens` tokens; new pages are cleared, since even a masked NaN would spread."""
        fresh = self.pages.grow(session, num_tokens)
        if fresh:
            self.storage.clear(fresh)

    def truncate(self, session: str, num_tokens: int) -> None:
        """Forget the tokens from `num_tokens` on, as if they had never been there; nothing changes if there are none."""
        copies = self.pages.truncate(session, num_tokens)
        if copies:
            copy_pages(self.storage, [old for old, _ in copies], [new for _, new in copies])
        slot = self.pages[session].num_tokens % PAGE_TOKENS
        if slot:
            last = self.pages[session].table[:, self.pages[session].num_pages - 1].tolist()
            self.storage.clear(last, slot)

    def write(self, session: str, block: int, position: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, kv_heads, head_dim] of one block from `position` on."""
        table, done = self.pages[session].of(block), 0
        while done < keys.shape[0]:
            page, slot = divmod(position + done, PAGE_TOKENS)
            rows = slice(done, done + PAGE_TOKENS - slot)
            self.storage.write(table[page], slot, keys[rows], values[rows])
            done += PAGE_TOKENS - slot

    def read(self, session: str, block: int) -> tuple[Tensor, Tensor]:
        """One block's keys and values in the order of the tokens, [pages, kv_heads, PAGE_TOKENS, padded]: floats in the dtype
        of the cache, integers in fp32. The keys are a transposed view, for queries that are `turned`.
        """
        return self.storage.read(self.pages[session].of(block))
