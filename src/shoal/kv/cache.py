"""The tensors behind the pages."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from shoal.kernels.tiles import padded
from shoal.kv.pages import PageAllocator
from shoal.nn.attention import PAGE_TOKENS
from shoal.nn.block import BlockConfig
from shoal.types import Span

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def page_bytes(config: BlockConfig, dtype: str = "float32") -> int:
    """Memory of one page: keys and values of PAGE_TOKENS tokens of one block."""
    return 2 * config.num_kv_heads * PAGE_TOKENS * padded(config.head_dim) * DTYPES[dtype].itemsize


class KVCache:
    """Keys [pages, kv_heads, padded(head_dim), PAGE_TOKENS], values [pages, kv_heads, PAGE_TOKENS, padded(head_dim)] and the
    allocator that says whose they are.

    A page's keys lie with the tokens last: the scores of 64 tokens are then sums over rows, which vector lanes do not share.
    """

    def __init__(self, config: BlockConfig, num_pages: int, dtype: str = "float32", device: str = "cpu") -> None:
        self.dtype = dtype
        self.device = device
        self.pages = PageAllocator(num_pages)
        self._head_dim = config.head_dim
        width = padded(config.head_dim)
        self._keys = _zeros((num_pages, config.num_kv_heads, width, PAGE_TOKENS), DTYPES[dtype], device)
        self._values = _zeros((num_pages, config.num_kv_heads, PAGE_TOKENS, width), DTYPES[dtype], device)

    def open(self, session: str, span: Span, max_tokens: int) -> None:
        """Grant a session its pages; raises ServerFull."""
        self.pages.open(session, span, max_tokens)

    def close(self, session: str) -> None:
        """Free a session's pages; closing twice is harmless."""
        self.pages.close(session)

    def grow(self, session: str, num_tokens: int) -> None:
        """Make room for `num_tokens` tokens; new pages are zeroed, since even a masked NaN would spread."""
        fresh = self.pages.grow(session, num_tokens)
        if fresh:
            index = torch.tensor(fresh, device=self.device)
            self._keys[index] = 0
            self._values[index] = 0

    def truncate(self, session: str, num_tokens: int) -> None:
        """Forget the tokens from `num_tokens` on, as if they had never been there; nothing changes if there are none."""
        self.pages.truncate(session, num_tokens)
        slot = self.pages[session].num_tokens % PAGE_TOKENS
        if slot:
            last = self.pages[session].table[:, self.pages[session].num_pages - 1].tolist()
            self._keys[last, :, :, slot:] = 0
            self._values[last, :, slot:] = 0

    def write(self, session: str, block: int, position: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, kv_heads, head_dim] of one block from `position` on."""
        table, done = self.pages[session].of(block), 0
        while done < keys.shape[0]:
            page, slot = divmod(position + done, PAGE_TOKENS)
            count = min(PAGE_TOKENS - slot, keys.shape[0] - done)
            slots, rows = slice(slot, slot + count), slice(done, done + count)
            self._keys[table[page], :, : self._head_dim, slots] = keys[rows].permute(1, 2, 0)
            self._values[table[page], :, slots, : self._head_dim] = values[rows].transpose(0, 1)
            done += count

    def read(self, session: str, block: int) -> tuple[Tensor, Tensor]:
        """One block's keys and values in the order of the tokens, [pages, kv_heads, PAGE_TOKENS, padded], in fp32.

        The keys are a transposed view.
        """
        table = self.pages[session].of(block)
        return _select(self._keys, table).transpose(2, 3), _select(self._values, table)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeros that cost physical memory only once they are written: numpy asks the system for zeroed pages, torch writes them."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(dtype).view(shape)


def _select(cache: Tensor, table: list[int]) -> Tensor:
    first, count = table[0], len(table)
    neighbours = table == list(range(first, first + count))
    chosen = (
        cache[first : first + count] if neighbours else cache.index_select(0, torch.tensor(table, device=cache.device))
    )
    return chosen.to(torch.float32)
