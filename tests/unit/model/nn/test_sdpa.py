"""Attention for devices gives what paged attention gives, within rounding, and knows what it cannot do."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.kv.pages import PAGE_TOKENS
from shoal.model.nn.alibi import alibi_slopes
from shoal.model.nn.attention import PLAIN, AttentionForm, paged_attention
from shoal.model.nn.sdpa import DeviceAttention, _chunk, _in_a_row, find_flash, folded, may_be_exact

HEADS, KV_HEADS, DIM = 6, 2, 10
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""What a rounded query and rounded weights may do to numbers of about 1."""

CUTS = [(0, 1), (0, 9), (0, PAGE_TOKENS), (130, 1), (60, 70), (64, 64), (127, 2)]
"""Position of the first row, and how many rows."""

FORMS = {
    "window": AttentionForm(window=20),
    "cap": AttentionForm(softcap=2.0),
    "ALiBi": AttentionForm(slopes=alibi_slopes(HEADS)),
    "all": AttentionForm(query_scale=0.5, window=70, softcap=1.5, slopes=alibi_slopes(HEADS)),
}
SUNK = AttentionForm(sinks=torch.arange(HEADS, dtype=torch.float32))


class Case:
    """Queries at `position`, and pages with some garbage where no token is."""

    def __init__(self, position: int, count: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        pages = -(-(position + count) // PAGE_TOKENS)
        stored = numbers(1, 2, pages, KV_HEADS, PAGE_TOKENS, PAGE_TOKENS)
        stored[..., DIM:] = 0
        self.query = 3 * numbers(2, count, HEADS, DIM).to(device)
        self.keys, self.values = stored.to(device, dtype)
        self.positions = torch.arange(position, position + count)

    def through(self, attention: Any, form: AttentionForm = PLAIN) -> Tensor:
        """Attention of the rows."""
        result = attention(self.query, self.keys, self.values, self.positions, 4, form)
        assert isinstance(result, Tensor)
        assert result.dtype == torch.float32
        return result.cpu()


def on(form: AttentionForm, device: str) -> AttentionForm:
    """A form with its tensors on a device."""
    sinks, slopes = (None if each is None else each.to(device) for each in (form.sinks, form.slopes))
    return form._replace(sinks=sinks, slopes=slopes)


def flash_in_plain_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """What flash_attn_func documents, [1, rows, heads, dim], in fp64: masks end at the lower right corner."""
    group, dim = q.shape[2] // k.shape[2], q.shape[3]
    wide = (each.double().repeat_interleave(group, 2) for each in (k, v))
    query, keys, values = (each.double().transpose(1, 2) for each in (q, *wide))
    scores = query @ keys.transpose(2, 3) * (dim**-0.5 if softmax_scale is None else softmax_scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    behind = torch.arange(k.shape[1]) - (torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1])
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * behind.abs()
    left = window_size[0] if window_size[0] >= 0 else k.shape[1]
    assert causal
    hidden = (behind > 0) | (behind < -left)
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values).transpose(1, 2).to(q.dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("position", "count"), CUTS)
def test_torchs_attention_is_paged_attention(device: str, dtype: torch.dtype, position: int, count: int) -> None:
    """Within the rounding of the cache's dtype, for one row and for chunks anywhere in the pages."""
    case, truth = Case(position, count, dtype, device), Case(position, count, dtype)
    difference = case.through(DeviceAttention()) - truth.through(paged_attention)
    assert difference.abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize(("position", "count"), CUTS)
def test_heads_folded_or_grouped(device: str, position: int, count: int) -> None:
    """Both ways to give torch the query heads, which devices choose between, agree."""
    case, form = Case(position, count, device=device), AttentionForm(query_scale=0.7)
    keys, values = (_in_a_row(pages, position + count, DIM) for pages in (case.keys, case.values))
    expected = Case(position, count).through(paged_attention, form)
    for way in (folded, _chunk):
        torch.testing.assert_close(way(case.query, keys, values, form).cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", [*FORMS.values(), SUNK])
def test_what_torch_does_not_know_is_paged(device: str, form: AttentionForm) -> None:
    """With the same bits."""
    case, form = Case(60, 70, device=device), on(form, device)
    assert torch.equal(case.through(DeviceAttention(), form), case.through(paged_attention, form))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("position", "count"), CUTS)
def test_flash_attn_gets_what_it_documents(form: AttentionForm, position: int, count: int) -> None:
    """Its stand-in, told of windows, caps, slopes and scale in its own way, gives what paged attention gives."""
    case = Case(position, count, torch.bfloat16)
    found = case.through(DeviceAttention(flash_in_plain_torch), form)
    assert (found - case.through(paged_attention, form)).abs().max() < TOLERANCE[torch.bfloat16]


def test_flash_attn_is_spared_what_it_cannot_do() -> None:
    """Sinks, fp32 and wide heads go elsewhere."""

    def refused(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("this is not for flash_attn")

    attention = DeviceAttention(refused)
    half, wide = Case(5, 3, torch.bfloat16), Case(5, 3)
    assert torch.equal(half.through(attention, SUNK), half.through(paged_attention, SUNK))
    wide.through(attention)
    assert not attention.takes(FORMS["window"], torch.bfloat16, 257)
    assert attention.takes(FORMS["window"], torch.bfloat16, 256)


def test_what_may_be_exact() -> None:
    """Paged attention, and a device's where it goes through that."""
    assert may_be_exact(paged_attention, PLAIN, torch.float32, DIM)
    assert not may_be_exact(DeviceAttention(), PLAIN, torch.float32, DIM)
    assert may_be_exact(DeviceAttention(), FORMS["cap"], torch.float16, DIM)
    assert not may_be_exact(DeviceAttention(flash_in_plain_torch), FORMS["cap"], torch.float16, DIM)


def test_flash_attn_is_found_by_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """None where there is no package, where it has no such function, and where it is too old for soft caps."""
    module = ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    assert find_flash() is None
    module.flash_attn_func = lambda q, k, v, softmax_scale, causal: q  # type: ignore[attr-defined]
    assert find_flash() is None
    module.flash_attn_func = flash_in_plain_torch  # type: ignore[attr-defined]
    assert find_flash() is flash_in_plain_torch
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert find_flash() is None


@pytest.mark.parametrize("form", [PLAIN, *FORMS.values()])
@pytest.mark.parametrize(("position", "count"), CUTS)
def test_flash_attn_itself(form: AttentionForm, position: int, count: int) -> None:
    """Where it is installed beside a CUDA device."""
    flash = find_flash()
    if flash is None or not torch.cuda.is_available():
        pytest.skip("needs flash_attn and a CUDA device")
    case, truth = Case(position, count, torch.float16, "cuda"), Case(position, count, torch.float16)
    difference = case.through(DeviceAttention(flash), on(form, "cuda")) - truth.through(paged_attention, form)
    assert difference.abs().max() < TOLERANCE[torch.float16]
