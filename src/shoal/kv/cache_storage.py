"""How a page's keys and values lie in memory, in each of the cache's dtypes.

Every dtype offers the same: a page is one block's keys and values of PAGE_TOKENS tokens. The raw tensors are public, and their
layout is a contract: compiled blocks read and write them by address. A page's keys lie with the tokens last: the scores of 64
tokens are then sums over rows, which vector lanes do not share.

The integers are symmetric, with one fp32 scale for each token and key head, of keys and of values (a scale for a page would
make a row depend on later ones). With `most` = 127 or 7, all in fp32 with every operation rounded to nearest:

    scale = max|x| / most        code = clamp(rint(x / scale), −most, most), 0 where scale is 0        x ≈ code · scale

where rint rounds halves to even. What was never written, and what lies beyond head_dim, is code 0 (and scale 0).
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from shoal.kv.pages import PAGE_TOKENS

HALF_TOKENS = PAGE_TOKENS // 2
SCALE_BYTES = 4
NO_CODES = 0x88
"""Two 4-bit codes of 0, which is stored as 8."""

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = (*FLOATS, "int8", "int4")


def read_dtype(dtype: str) -> torch.dtype:
    """The floats in which a cache of one of KV_DTYPES is read."""
    return FLOATS.get(dtype, torch.float32)


class CacheShape(NamedTuple):
    """What a page holds for each token: keys and values of `kv_heads` heads of `head_dim` numbers, stored in `width` places."""

    kv_heads: int
    head_dim: int
    width: int


class Storage(Protocol):
    """The pages of a cache. `keys` and `values` are raw; so are the scales of those kinds that have them."""

    keys: Tensor
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything raw, pages first."""
        ...

    def write(self, page: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, kv_heads, head_dim] in fp32 in the slots of a page from `slot` on."""
        ...

    def read(self, table: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values [pages, kv_heads, PAGE_TOKENS, width]: floats in their dtype, integers in fp32. The keys are a
        transposed view."""
        ...

    def clear(self, pages: list[int], slot: int = 0) -> None:
        """Forget the slots of these pages from `slot` on."""
        ...


def make_storage(shape: CacheShape, num_pages: int, dtype: str = "float32", device: str = "cpu") -> Storage:
    """Pages of one of KV_DTYPES."""
    if dtype in FLOATS:
        return FloatPages(shape, num_pages, FLOATS[dtype], device)
    kinds: dict[str, type[Int8Pages | Int4Pages]] = {"int8": Int8Pages, "int4": Int4Pages}
    return kinds[dtype](shape, num_pages, device)


def page_bytes(shape: CacheShape, dtype: str = "float32") -> int:
    """Memory of one page, scales included."""
    numbers = 2 * shape.kv_heads * PAGE_TOKENS * shape.width
    if dtype in FLOATS:
        return numbers * FLOATS[dtype].itemsize
    return numbers // {"int8": 1, "int4": 2}[dtype] + 2 * shape.kv_heads * PAGE_TOKENS * SCALE_BYTES


def copy_pages(storage: Storage, sources: list[int], targets: list[int]) -> None:
    """Make pages equal to others, which stay as they are."""
    for tensor in storage.tensors:
        tensor[targets] = tensor[sources]


class FloatPages:
    """Keys [pages, kv_heads, width, PAGE_TOKENS], values [pages, kv_heads, PAGE_TOKENS, width], each rounded once."""

    def __init__(self, shape: CacheShape, num_pages: int, dtype: torch.dtype, device: str) -> None:
        self._dim = shape.head_dim
        self.keys = zeros((num_pages, shape.kv_heads, shape.width, PAGE_TOKENS), dtype, device)
        self.values = zeros((num_pages, shape.kv_heads, PAGE_TOKENS, shape.width), dtype, device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See `Storage`."""
        return self.keys, self.values

    def write(self, page: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """See `Storage`."""
        slots = slice(slot, slot + keys.shape[0])
        self.keys[page, :, : self._dim, slots] = keys.permute(1, 2, 0)
        self.values[page, :, slots, : self._dim] = values.transpose(0, 1)

    def read(self, table: list[int]) -> tuple[Tensor, Tensor]:
        """See `Storage`."""
        keys, values = (_select(tensor, table) for tensor in self.tensors)
        return keys.transpose(2, 3), values

    def clear(self, pages: list[int], slot: int = 0) -> None:
        """See `Storage`."""
        self.keys[pages, :, :, slot:] = 0
        self.values[pages, :, slot:] = 0


class Int8Pages:
    """Codes in int8, laid out like `FloatPages`; scales in fp32 [pages, kv_heads, PAGE_TOKENS]."""

    MOST: ClassVar[int] = 127

    def __init__(self, shape: CacheShape, num_pages: int, device: str) -> None:
        heads, width = shape.kv_heads, shape.width
        self._dim = shape.head_dim
        self.keys = zeros((num_pages, heads, width, PAGE_TOKENS), torch.int8, device)
        self.values = zeros((num_pages, heads, PAGE_TOKENS, width), torch.int8, device)
        self.key_scales = zeros((num_pages, heads, PAGE_TOKENS), torch.float32, device)
        self.value_scales = zeros((num_pages, heads, PAGE_TOKENS), torch.float32, device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See `Storage`."""
        return self.keys, self.values, self.key_scales, self.value_scales

    def write(self, page: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """See `Storage`."""
        slots = slice(slot, slot + keys.shape[0])
        key_codes, key_scales = quantize(keys, self.MOST)
        value_codes, value_scales = quantize(values, self.MOST)
        self.keys[page, :, : self._dim, slots] = key_codes.permute(1, 2, 0)
        self.values[page, :, slots, : self._dim] = value_codes.transpose(0, 1)
        self.key_scales[page, :, slots] = key_scales.T
        self.value_scales[page, :, slots] = value_scales.T

    def read(self, table: list[int]) -> tuple[Tensor, Tensor]:
        """See `Storage`."""
        keys, values, key_scales, value_scales = (_select(tensor, table) for tensor in self.tensors)
        return (keys * key_scales[:, :, None]).transpose(2, 3), values * value_scales[..., None]

    def clear(self, pages: list[int], slot: int = 0) -> None:
        """See `Storage`."""
        self.keys[pages, :, :, slot:] = 0
        self.values[pages, :, slot:] = 0
        self.key_scales[pages, :, slot:] = 0
        self.value_scales[pages, :, slot:] = 0


class Int4Pages:
    """Codes −7 … 7, stored as 1 … 15 two to a byte in uint8; scales in fp32 [pages, kv_heads, PAGE_TOKENS].

    Keys [pages, kv_heads, width, 32]: tokens t (low half of the byte) and t + 32 (high). Values [pages, kv_heads, PAGE_TOKENS,
    width / 2]: dimensions d (low) and d + width / 2 (high).
    """

    MOST: ClassVar[int] = 7

    def __init__(self, shape: CacheShape, num_pages: int, device: str) -> None:
        heads, width = shape.kv_heads, shape.width
        self._dim, self._width = shape.head_dim, width
        self.keys = zeros((num_pages, heads, width, HALF_TOKENS), torch.uint8, device)
        self.values = zeros((num_pages, heads, PAGE_TOKENS, width // 2), torch.uint8, device)
        self.key_scales = zeros((num_pages, heads, PAGE_TOKENS), torch.float32, device)
        self.value_scales = zeros((num_pages, heads, PAGE_TOKENS), torch.float32, device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See `Storage`."""
        return self.keys, self.values, self.key_scales, self.value_scales

    def write(self, page: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """See `Storage`."""
        slots = slice(slot, slot + keys.shape[0])
        key_codes, key_scales = quantize(keys, self.MOST)
        value_codes, value_scales = quantize(values, self.MOST)
        self._write_keys(page, slot, _stored(key_codes).permute(1, 2, 0))
        padding = self._width - self._dim
        stored = torch.nn.functional.pad(_stored(value_codes).transpose(0, 1), (0, padding), value=NO_CODES & 15)
        self.values[page, :, slots] = stored[..., : self._width // 2] | stored[..., self._width // 2 :] << 4
        self.key_scales[page, :, slots] = key_scales.T
        self.value_scales[page, :, slots] = value_scales.T

    def _write_keys(self, page: int, slot: int, stored: Tensor) -> None:
        """Codes [kv_heads, head_dim, n] of tokens of which some may lie in low and some in high halves."""
        count = min(max(0, HALF_TOKENS - slot), stored.shape[2])
        here = self.keys[page, :, : self._dim]
        low = here[..., slot : slot + count]
        low.copy_(low & 0xF0 | stored[..., :count])
        first = max(slot, HALF_TOKENS) - HALF_TOKENS
        high = here[..., first : first + stored.shape[2] - count]
        high.copy_(high & 0x0F | stored[..., count:] << 4)

    def read(self, table: list[int]) -> tuple[Tensor, Tensor]:
        """See `Storage`."""
        keys, values, key_scales, value_scales = (_select(tensor, table) for tensor in self.tensors)
        return (_codes(keys) * key_scales[:, :, None]).transpose(2, 3), _codes(values) * value_scales[..., None]

    def clear(self, pages: list[int], slot: int = 0) -> None:
        """See `Storage`."""
        low, high = slice(min(slot, HALF_TOKENS), None), slice(max(0, slot - HALF_TOKENS), None)
        self.keys[pages, :, :, low] = self.keys[pages, :, :, low] & 0xF0 | NO_CODES & 0x0F
        self.keys[pages, :, :, high] = self.keys[pages, :, :, high] & 0x0F | NO_CODES & 0xF0
        self.values[pages, :, slot:] = NO_CODES
        self.key_scales[pages, :, slot:] = 0
        self.value_scales[pages, :, slot:] = 0


def quantize(numbers: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """fp32 [..., dim] → codes in int8 [..., dim] and scales in fp32 [...]; see the module. NaN and infinity stay visible: in
    the scale."""
    peaks = numbers.abs().amax(-1)
    scales = peaks / torch.full_like(peaks, most)  # by a plain number, CUDA would multiply by its reciprocal
    divided = torch.round(numbers / scales[..., None]).clamp(-most, most)
    return torch.where(scales[..., None] > 0, divided, 0).to(torch.int8), scales


def _stored(codes: Tensor) -> Tensor:
    return (codes + 8).view(torch.uint8)


def _codes(packed: Tensor) -> Tensor:
    """Bytes [..., n] → codes in fp32 [..., 2 n], those of the low halves first."""
    return torch.cat([packed & 15, packed >> 4], -1).to(torch.float32) - 8


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeros that cost physical memory only once they are written: numpy asks the system for zeroed pages, torch writes them."""
    if device != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    count = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(dtype).view(shape)


def _select(tensor: Tensor, table: list[int]) -> Tensor:
    """Some pages in this order; a view where they are neighbours."""
    first, count = table[0], len(table)
    if table == list(range(first, first + count)):
        return tensor[first : first + count]
    return tensor.index_select(0, torch.tensor(table, device=tensor.device))
