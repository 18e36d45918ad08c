"""How a page's keys and values lie in memory, in each of the cache's dtypes.

Every dtype offers the same: a page is one block's keys and values of PAGE_TOKENS tokens. The raw tensors are public, and their
layout is a contract: compiled blocks read and write them by address. A page's keys lie with the tokens last: the scores of 64
tokens are then sums over rows, which vector lanes do not share.

The integers have one fp32 scale for each token and key head, of keys and of values (a scale for a page would make a row depend
on later ones). Of the largest number, the greatest or else the least, the code is −most − 1, so that all codes are used: the
scale has the other sign. With `most` = 127 or 7, all in fp32 with every operation rounded to nearest:

    peak = max x if max x ≥ −min x else min x        scale = −peak / (most + 1)
    code = clamp(rint(x / scale), −most − 1, most), 0 where scale is 0        x ≈ code · scale

where rint rounds halves to even. What was never written, and what lies beyond head_dim, is code 0 (and scale 0). Keys are
turned by a Hadamard matrix before (`hadamard`), and queries have to be before they meet them.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from shoal.kv.hadamard import UNTURNED, turned, turning_size
from shoal.kv.pages import PAGE_TOKENS
from shoal.types import KvDtype

HALF_TOKENS = PAGE_TOKENS // 2
SCALE_BYTES = 4
NO_CODES = 0x88
"""Two 4-bit codes of 0, which is stored as 8."""

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES: tuple[str, ...] = get_args(KvDtype)


def read_dtype(dtype: str) -> torch.dtype:
    """The floats in which a cache of one of KV_DTYPES is read."""
    return FLOATS.get(dtype, torch.float32)


class CacheShape(NamedTuple):
    """What a page holds for each token: keys and values of `kv_heads` heads of `head_dim` numbers, stored in `width` places."""

    kv_heads: int
    head_dim: int
    width: int


class Storage(Protocol):
    """The pages of a cache. `keys` and `values` are raw; so are the scales of those kinds that have them.

    `turning` is the size of the matrix by which keys are turned when they are written (`hadamard`).
    """

    keys: Tensor
    values: Tensor
    turning: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything raw, pages first."""
        ...

    def write(self, page: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, kv_heads, head_dim] in fp32 in the slots of a page from `slot` on."""
        ...

    def read(self, table: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values [pages, kv_heads, PAGE_TOKENS, width]: floats in their dtype, integers in fp32. The keys are a
        transposed view, and turned as they lie."""
        ...

    def clear(self, pages: list[int], slot: int = 0) -> None:
        """Forget the slots of these pages from `slot` on."""
        ...


def make_storage(shape: CacheShape, num_pages: int, dtype: str = "float32", device: str = "cpu") -> Storage:
    """Pages of one of KV_DTYPES."""
    if dtype in FLOATS:
        return FloatPages(shape, num_pages, FLOATS[dtype], device)
    return CodePages(shape, num_pages, LAYOUTS[dtype](), device, turning_size(shape.head_dim))


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


class FloatPages(Storage):
    """Keys [pages, kv_heads, width, PAGE_TOKENS], values [pages, kv_heads, PAGE_TOKENS, width], each rounded once."""

    turning = UNTURNED

    def __init__(self, shape: CacheShape, num_pages: int, dtype: torch.dtype, device: str) -> None:
        self._dim = shape.head_dim
        self.keys = zeros((num_pages, shape.kv_heads, shape.width, PAGE_TOKENS), dtype, device)
        self.values = zeros((num_pages, shape.kv_heads, PAGE_TOKENS, shape.width), dtype, device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.keys, self.values

    def write(self, page: int, slot: int, keys: Tensor, values: Tensor) -> None:
        slots = slice(slot, slot + keys.shape[0])
        self.keys[page, :, : self._dim, slots] = keys.permute(1, 2, 0)
        self.values[page, :, slots, : self._dim] = values.transpose(0, 1)

    def read(self, table: list[int]) -> tuple[Tensor, Tensor]:
        keys, values = (_select(tensor, table) for tensor in self.tensors)
        return keys.transpose(2, 3), values

    def clear(self, pages: list[int], slot: int = 0) -> None:
        self.keys[pages, :, :, slot:] = 0
        self.values[pages, :, slot:] = 0


class CodeLayout(Protocol):
    """How the codes of a page lie in memory, and the largest of them."""

    most: int

    def pages(self, shape: CacheShape, num_pages: int, device: str) -> tuple[Tensor, Tensor]:
        """Raw keys and values of `num_pages` pages."""
        ...

    def write(self, keys: Tensor, values: Tensor, slot: int, key_codes: Tensor, value_codes: Tensor) -> None:
        """Codes [n, kv_heads, head_dim] in int8 into the slots from `slot` on of one page's raw keys and values."""
        ...

    def codes(self, raw: Tensor) -> Tensor:
        """Numbers, one a code, of raw keys or values."""
        ...

    def clear(self, keys: Tensor, values: Tensor, pages: list[int], slot: int) -> None:
        """Codes of 0 in the slots of these pages from `slot` on."""
        ...


class CodePages(Storage):
    """Codes as a layout has them, and scales in fp32 [pages, kv_heads, PAGE_TOKENS]."""

    def __init__(self, shape: CacheShape, num_pages: int, layout: CodeLayout, device: str, turning: int) -> None:
        self.turning = turning
        self._layout = layout
        self.keys, self.values = layout.pages(shape, num_pages, device)
        self.key_scales = zeros((num_pages, shape.kv_heads, PAGE_TOKENS), torch.float32, device)
        self.value_scales = zeros((num_pages, shape.kv_heads, PAGE_TOKENS), torch.float32, device)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.key_scales, self.value_scales

    def write(self, page: int, slot: int, keys: Tensor, values: Tensor) -> None:
        slots = slice(slot, slot + keys.shape[0])
        key_codes, key_scales = quantize(turned(keys, self.turning), self._layout.most)
        value_codes, value_scales = quantize(values, self._layout.most)
        self._layout.write(self.keys[page], self.values[page], slot, key_codes, value_codes)
        self.key_scales[page, :, slots] = key_scales.T
        self.value_scales[page, :, slots] = value_scales.T

    def read(self, table: list[int]) -> tuple[Tensor, Tensor]:
        keys, values, key_scales, value_scales = (_select(tensor, table) for tensor in self.tensors)
        keys = self._layout.codes(keys) * key_scales[:, :, None]
        return keys.transpose(2, 3), self._layout.codes(values) * value_scales[..., None]

    def clear(self, pages: list[int], slot: int = 0) -> None:
        self._layout.clear(self.keys, self.values, pages, slot)
        self.key_scales[pages, :, slot:] = 0
        self.value_scales[pages, :, slot:] = 0


class ByteCodes(CodeLayout):
    """A code in each place of `FloatPages`, in int8."""

    most = 127

    def pages(self, shape: CacheShape, num_pages: int, device: str) -> tuple[Tensor, Tensor]:
        heads, width = shape.kv_heads, shape.width
        keys = zeros((num_pages, heads, width, PAGE_TOKENS), torch.int8, device)
        return keys, zeros((num_pages, heads, PAGE_TOKENS, width), torch.int8, device)

    def write(self, keys: Tensor, values: Tensor, slot: int, key_codes: Tensor, value_codes: Tensor) -> None:
        count, _, dim = key_codes.shape
        keys[:, :dim, slot : slot + count] = key_codes.permute(1, 2, 0)
        values[:, slot : slot + count, :dim] = value_codes.transpose(0, 1)

    def codes(self, raw: Tensor) -> Tensor:
        return raw

    def clear(self, keys: Tensor, values: Tensor, pages: list[int], slot: int) -> None:
        keys[pages, :, :, slot:] = 0
        values[pages, :, slot:] = 0


class NibbleCodes(CodeLayout):
    """Codes −8 … 7, stored as 0 … 15 two to a byte in uint8.

    Keys [pages, kv_heads, width, 32]: tokens t (low half of the byte) and t + 32 (high). Values [pages, kv_heads, PAGE_TOKENS,
    width / 2]: dimensions d (low) and d + width / 2 (high).
    """

    most = 7

    def pages(self, shape: CacheShape, num_pages: int, device: str) -> tuple[Tensor, Tensor]:
        heads, width = shape.kv_heads, shape.width
        keys = zeros((num_pages, heads, width, HALF_TOKENS), torch.uint8, device)
        return keys, zeros((num_pages, heads, PAGE_TOKENS, width // 2), torch.uint8, device)

    def write(self, keys: Tensor, values: Tensor, slot: int, key_codes: Tensor, value_codes: Tensor) -> None:
        count, _, dim = key_codes.shape
        self._write_keys(keys[:, :dim], slot, _stored(key_codes).permute(1, 2, 0))
        half = values.shape[2]
        stored = torch.nn.functional.pad(_stored(value_codes).transpose(0, 1), (0, 2 * half - dim), value=NO_CODES & 15)
        values[:, slot : slot + count] = stored[..., :half] | stored[..., half:] << 4

    def _write_keys(self, keys: Tensor, slot: int, stored: Tensor) -> None:
        """Codes [kv_heads, head_dim, n] of tokens of which some may lie in low and some in high halves."""
        count = min(max(0, HALF_TOKENS - slot), stored.shape[2])
        low = keys[..., slot : slot + count]
        low.copy_(low & 0xF0 | stored[..., :count])
        first = max(slot, HALF_TOKENS) - HALF_TOKENS
        high = keys[..., first : first + stored.shape[2] - count]
        high.copy_(high & 0x0F | stored[..., count:] << 4)

    def codes(self, raw: Tensor) -> Tensor:
        return torch.cat([raw & 15, raw >> 4], -1).to(torch.float32) - 8

    def clear(self, keys: Tensor, values: Tensor, pages: list[int], slot: int) -> None:
        low, high = slice(min(slot, HALF_TOKENS), None), slice(max(0, slot - HALF_TOKENS), None)
        keys[pages, :, :, low] = keys[pages, :, :, low] & 0xF0 | NO_CODES & 0x0F
        keys[pages, :, :, high] = keys[pages, :, :, high] & 0x0F | NO_CODES & 0xF0
        values[pages, :, slot:] = NO_CODES


LAYOUTS: dict[str, type[CodeLayout]] = {"int8": ByteCodes, "int4": NibbleCodes}


def quantize(numbers: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """fp32 [..., dim] → codes in int8 [..., dim] and scales in fp32 [...]; see the module. NaN and infinity stay visible: in
    the scale."""
    least, greatest = numbers.aminmax(dim=-1)
    peaks = torch.where(greatest < -least, least, greatest)
    scales = peaks / -(most + 1.0) + 0.0  # the reciprocal, by which CUDA multiplies, is exact; −0 becomes +0
    divided = torch.round(numbers / scales[..., None]).clamp(-most - 1, most)
    return torch.where(scales[..., None].abs() > 0, divided, 0).to(torch.int8), scales


def _stored(codes: Tensor) -> Tensor:
    return (codes + 8).view(torch.uint8)


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
