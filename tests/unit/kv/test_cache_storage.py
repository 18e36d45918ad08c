"""Pages in each dtype: the layout that compiled blocks rely on, and what rounding costs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.kv.cache_storage import (
    FLOATS,
    KV_DTYPES,
    CacheShape,
    CodePages,
    Storage,
    make_storage,
    page_bytes,
    quantize,
)
from shoal.kv.hadamard import turned
from shoal.kv.pages import PAGE_TOKENS
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.rope import RopeConfig

CONFIG = BlockConfig(40, 4, 2, 10, 64, 1e-5, RopeConfig())
TURNING = 2
"""Of heads of ten numbers."""

KEYS, VALUES = 3 * numbers(1, PAGE_TOKENS, 2, 10), 5 * numbers(2, PAGE_TOKENS, 2, 10)
MOST = {"int8": 127, "int4": 7}


def written(dtype: str) -> Storage:
    """Page 1 of three is full."""
    storage = make_storage(CONFIG.cache_shape, 3, dtype)
    storage.clear([0, 1, 2])
    storage.write(1, 0, KEYS, VALUES)
    return storage


def read(storage: Storage, page: int = 1) -> tuple[Tensor, Tensor]:
    """A page's keys and values [tokens, kv_heads, head_dim]."""
    keys, values = storage.read([page])
    return keys[0, :, :, :10].transpose(0, 1), values[0, :, :, :10].transpose(0, 1)


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_a_page_costs_what_is_said(dtype: str) -> None:
    """`page_bytes` is what all tensors take, scales included."""
    storage = make_storage(CONFIG.cache_shape, 20, dtype)
    assert sum(tensor.nbytes for tensor in storage.tensors) == 20 * page_bytes(CONFIG.cache_shape, dtype)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_error_is_half_a_step(dtype: str) -> None:
    """Of each token's and head's own scale, or a whole one for what lies opposite to the largest; keys are turned before."""
    for given, found in zip((turned(KEYS, TURNING), VALUES), read(written(dtype)), strict=True):
        peaks = given.abs().amax(-1, keepdim=True)
        steps = peaks / (MOST[dtype] + 1)
        largest = torch.where(given.amax(-1, keepdim=True) == peaks, given, -given)  # the largest is positive
        allowed = torch.where(largest < -MOST[dtype] * steps, steps, steps / 2)
        assert ((given - found).abs() <= allowed * 1.000001).all()
        assert torch.isclose(given, found).gather(-1, given.abs().argmax(-1, keepdim=True)).all()
        assert found.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_codes_are_rounded_to_even_and_scaled_by_the_largest(dtype: str) -> None:
    """The rule of the module on numbers whose scale is ±1, then on ties, on zero and on what cannot be scaled."""
    most = MOST[dtype]
    codes, scales = quantize(torch.tensor([[-most - 1, 0.5, 1.5, 2.5, -0.5, -1.5, most]]), most)
    assert codes.tolist() == [[-most - 1, 0, 2, 2, 0, -2, most]]
    assert scales.tolist() == [1.0]
    codes, scales = quantize(torch.tensor([[most + 1, -0.5, -1.5, -most - 1.0]]), most)
    assert codes.tolist() == [[-most - 1, 0, 2, most]]
    assert scales.tolist() == [-1.0]
    codes, scales = quantize(torch.tensor([[0.0, -0.0], [1e-45, 0.0], [-0.0, -0.0], [0.3, -0.7]]), most)
    assert codes[:3].abs().amax(-1).tolist() == [0, 0, 0]
    assert torch.equal(scales[:3].view(torch.int32), torch.zeros(3, dtype=torch.int32))
    assert codes[3, 1] == -most - 1
    assert scales[3] == torch.tensor(0.7) / (most + 1)
    for wrong in (float("nan"), float("inf"), float("-inf")):
        for numbers_ in ([1.0, wrong], [wrong, 1.0], [wrong, -1.0, 3.0]):
            codes, scales = quantize(torch.tensor([numbers_]), most)
            assert not torch.isfinite(codes * scales[..., None]).any()


def test_int8_lies_as_the_contract_says() -> None:
    """Keys with the tokens last, values with the dimensions last, a scale each per token and head; padding is 0."""
    storage = written("int8")
    assert isinstance(storage, CodePages)
    codes, scales = quantize(turned(KEYS, TURNING), 127)
    assert storage.keys.shape == (3, 2, 64, PAGE_TOKENS)
    assert torch.equal(storage.keys[1, 1, :10, 33], codes[33, 1])
    assert torch.equal(storage.key_scales[1], scales.T)
    codes, scales = quantize(VALUES, 127)
    assert storage.values.shape == (3, 2, PAGE_TOKENS, 64)
    assert torch.equal(storage.values[1, 0, 40, :10], codes[40, 0])
    assert torch.equal(storage.value_scales[1], scales.T)
    assert not storage.keys[:, :, 10:].any()
    assert not storage.values[..., 10:].any()


def test_int4_lies_as_the_contract_says() -> None:
    """Tokens t and t + 32 share a byte of keys, dimensions d and d + 32 one of values; a code of 0 is stored as 8."""
    config = BlockConfig(40, 4, 2, 40, 64, 1e-5, RopeConfig())
    keys, values = numbers(1, PAGE_TOKENS, 2, 40), numbers(2, PAGE_TOKENS, 2, 40)
    storage = make_storage(config.cache_shape, 2, "int4")
    assert isinstance(storage, CodePages)
    storage.clear([0, 1])
    assert all((codes == 0x88).all() for codes in (storage.keys, storage.values))
    storage.write(1, 0, keys, values)
    codes, scales = quantize(turned(keys, 8), 7)
    assert storage.keys.shape == (2, 2, 64, 32)
    assert torch.equal(storage.keys[1, 1, :40, 5] & 15, (codes[5, 1] + 8).to(torch.uint8))
    assert torch.equal(storage.keys[1, 1, :40, 5] >> 4, (codes[37, 1] + 8).to(torch.uint8))
    assert (storage.keys[1, :, 40:] == 0x88).all()
    assert torch.equal(storage.key_scales[1], scales.T)
    codes, scales = quantize(values, 7)
    assert storage.values.shape == (2, 2, PAGE_TOKENS, 32)
    assert torch.equal(storage.values[1, 0, 9] & 15, (codes[9, 0, :32] + 8).to(torch.uint8))
    assert torch.equal(storage.values[1, 0, 9, :8] >> 4, (codes[9, 0, 32:] + 8).to(torch.uint8))
    assert (storage.values[1, 0, 9, 8:] >> 4 == 8).all()
    assert torch.equal(storage.value_scales[1], scales.T)


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("slot", [1, 31, 32, 33, 63])
def test_clearing_leaves_what_was_before(dtype: str, slot: int) -> None:
    """A cleared slot is as if never written, bit for bit, and nothing else changes."""
    storage, fresh = written(dtype), make_storage(CONFIG.cache_shape, 3, dtype)
    storage.clear([1, 2], slot)
    fresh.clear([0, 1, 2])
    fresh.write(1, 0, KEYS[:slot], VALUES[:slot])
    assert all(torch.equal(one, other) for one, other in zip(storage.tensors, fresh.tensors, strict=True))


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("cuts", [(0, 64), (0, 1, 2, 3, 64), (0, 20, 50, 64), (0, 32, 64), (0, 31, 33, 64)])
def test_pieces_are_written_as_the_whole(dtype: str, cuts: tuple[int, ...]) -> None:
    """However a page is filled, its bytes are the same."""
    storage, whole = make_storage(CONFIG.cache_shape, 3, dtype), written(dtype)
    storage.clear([0, 1, 2])
    for first, last in itertools.pairwise(cuts):
        storage.write(1, first, KEYS[first:last], VALUES[first:last])
    assert all(torch.equal(one, other) for one, other in zip(storage.tensors, whole.tensors, strict=True))


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize(("head_dim", "size"), [(64, 64), (80, 16), (96, 32), (128, 128), (48, 16), (33, 1)])
def test_codes_alone_are_turned(dtype: str, head_dim: int, size: int) -> None:
    """Floats keep the keys that they are given, to their own rounding."""
    shape = CacheShape(2, head_dim, 128)
    storage, keys = make_storage(shape, 1, dtype), numbers(4, 9, 2, head_dim)
    assert storage.turning == (size if dtype in ("int8", "int4") else 1)
    storage.clear([0])
    storage.write(0, 0, keys, keys)
    found = storage.read([0])[0][0, :, :9, :head_dim].transpose(0, 1)
    if dtype in FLOATS:
        assert torch.equal(found, keys.to(FLOATS[dtype]))
    else:
        codes, scales = quantize(turned(keys, size), MOST[dtype])
        assert torch.equal(found, codes * scales[..., None])
