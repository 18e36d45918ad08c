"""Row-exact kernels: against the plain reference, and bit for bit against themselves in other company."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.kv.pages import PAGE_TOKENS
from shoal.model.kernels.linears import RowLinear
from shoal.model.kernels.tiles import (
    SLAB,
    exp_,
    gelu_,
    gelu_tanh_,
    pad_rows,
    padded,
    quick_gelu_,
    row_sum,
    sigmoid_,
    silu_,
    softcap_,
    tree_sum,
)
from shoal.model.nn.alibi import alibi_slopes
from shoal.model.nn.attention import GROUP_PAGES, AttentionForm, paged_attention
from shoal.model.nn.block import BlockConfig
from shoal.model.nn.layers import LayerNorm, RmsNorm
from shoal.model.nn.rope import RopeConfig, rotate
from tests.support import reference_kernels as reference
from tests.support.tiny_models import SMOLLM2, random_blocks, shared_tile

THREADS = (1, 2, 3, 5)
SHAPES = [(576, 960), (576, 3072), (1536, 576), (576, 576), (64, 33), (90, 100), (1537, 33), (33, 1537)]
Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, tuple[Activation, Activation]] = {
    "exp": (exp_, torch.exp),
    "silu": (silu_, torch.nn.functional.silu),
    "gelu, tanh": (gelu_tanh_, lambda rows: torch.nn.functional.gelu(rows, approximate="tanh")),
    "gelu": (gelu_, torch.nn.functional.gelu),
    "sigmoid": (sigmoid_, torch.sigmoid),
    "quick gelu": (quick_gelu_, lambda rows: rows * torch.sigmoid(1.702 * rows)),
    "softcap": (lambda rows: softcap_(rows, 3.0), lambda rows: 3 * torch.tanh(rows / 3)),
}
FORMS = {
    "window": AttentionForm(window=70),
    "window of a page": AttentionForm(window=64),
    "softcap": AttentionForm(softcap=2.0),
    "sinks": AttentionForm(sinks=2 * numbers(20, 4)),
    "ALiBi": AttentionForm(slopes=alibi_slopes(4)),
    "all of it": AttentionForm(window=33, softcap=5.0, sinks=numbers(20, 4), slopes=alibi_slopes(4)),
}


@pytest.fixture(scope="module")
def tile() -> int:
    """What the proof finds here, for two shapes and all thread counts."""
    odd = BlockConfig(90, 3, 1, 22, 100, 1e-5, RopeConfig())
    tiles = [shared_tile(random_blocks(config, 1)[0], THREADS) for config in (SMOLLM2, odd)]
    found = [one for one in tiles if one is not None]
    if len(found) < len(tiles):
        pytest.skip("this machine's BLAS is not row-exact with several threads")
    return max(found)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
def test_linear_is_the_references_and_row_exact(in_features: int, out_features: int, tile: int) -> None:
    """A row of a product has the same bits alone, in company of any size, at any place, with any number of threads."""
    weight, bias = numbers(1, out_features, in_features), numbers(2, out_features)
    linear, rows = RowLinear(weight, bias), numbers(3, 300, in_features)
    torch.set_num_threads(1)
    alone = torch.cat([linear(pad_rows(rows[i : i + 1], tile))[:1] for i in range(24)])
    torch.testing.assert_close(alone[:, :out_features], reference.linear(rows[:24], weight, bias), rtol=1e-5, atol=1e-4)
    assert not alone[:, out_features:].any()
    for threads in THREADS:
        torch.set_num_threads(threads)
        for first, height in ((0, 1), (1, 2), (0, 3), (3, 5), (0, 17), (7, 64), (1, 129), (0, 300)):
            company = linear(pad_rows(rows[first : first + height], tile))[: min(height, 24 - first)]
            assert torch.equal(company, alone[first : first + company.shape[0]]), (threads, first, height)


@pytest.mark.parametrize("width", [1, 33, 64, 90, 100, 576, 1537, 2048, 8192, 16_384])
def test_row_sums_do_not_depend_on_company(width: int) -> None:
    """The sum of a row has the same bits alone and among 600 others, with any number of threads."""
    rows = numbers(4, 600, width)
    torch.set_num_threads(1)
    alone = torch.cat([row_sum(rows[i : i + 1]) for i in range(0, 600, 7)])
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert torch.equal(row_sum(rows)[::7], alone)
        assert torch.equal(row_sum(rows[:8])[::7], alone[:2])


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("width", [33, 90, 100, 1537])
def test_transcendentals_do_not_depend_on_company(name: str, width: int) -> None:
    """Padded to whole vectors, an element's result is the same wherever it lies and however many threads there are."""
    activation, plain = ACTIVATIONS[name]
    rows = torch.nn.functional.pad(8 * numbers(5, 64, width), (0, padded(width) - width))
    torch.set_num_threads(1)
    alone = torch.stack([activation(row.clone()) for row in rows])
    for threads in THREADS:
        torch.set_num_threads(threads)
        for first, height in ((0, 64), (1, 63), (5, 4), (13, 31)):
            assert torch.equal(activation(rows[first : first + height].clone()), alone[first : first + height])
    torch.testing.assert_close(alone, plain(rows), rtol=1e-5, atol=1e-6)


def test_transcendentals_refuse_what_ends_inside_a_vector() -> None:
    """A buffer that is not whole vectors, or not contiguous, is an error and not a silent difference."""
    with pytest.raises(ValueError, match="whole vectors"):
        exp_(torch.zeros(4, 33))
    with pytest.raises(ValueError, match="whole vectors"):
        silu_(torch.zeros(64, 128)[:, :64])
    assert SLAB < 32_768, "torch splits elementwise work between threads from its grain on"


def test_exp_is_exact_where_attention_needs_it() -> None:
    """e⁰ is 1 and e^−∞ is 0, to the bit: a page that a row cannot see leaves its sums alone."""
    values = torch.zeros(64)
    values[1::2] = float("-inf")
    assert exp_(values).tolist() == [1.0, 0.0] * 32


@pytest.mark.parametrize("count", [1, 2, 3, 5, 31, 32])
def test_tree_sum_ignores_zeros_at_the_end(count: int) -> None:
    """More pages that add nothing, of either sign, do not change the sum's bits; nor does a negative zero appear."""
    terms = numbers(6, count, 3, 5)
    terms[:, 0, 0] = -0.0
    expected = tree_sum(terms, 0)
    assert not torch.signbit(expected[0, 0])
    torch.testing.assert_close(expected, terms.sum(0))
    for more in (1, 2, 7, 32):
        for zero in (0.0, -0.0):
            longer = torch.cat([terms, torch.full((more, 3, 5), zero)])
            assert torch.equal(_bits(tree_sum(longer, 0)), _bits(expected))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


def test_norm_and_rotation_are_the_references() -> None:
    """Both norms and the rotary embedding, of a head or of a part of it, agree with their definitions."""
    rows, weight = numbers(7, 5, 90), numbers(8, 90)
    torch.testing.assert_close(RmsNorm(weight, 1e-5)(rows), reference.rms_norm(rows, weight, 1e-5))
    bias = numbers(30, 90)
    expected = reference.layer_norm(3 * rows + 1, weight, bias, 1e-5)
    torch.testing.assert_close(LayerNorm(weight, bias, 1e-5)(3 * rows + 1), expected)
    heads, angles = numbers(9, 5, 3, 10), numbers(10, 5, 5)
    turned = reference.rotate(heads, angles.cos(), angles.sin())
    torch.testing.assert_close(rotate(heads, angles.cos(), angles.sin()), turned)
    longer = torch.cat([heads, numbers(31, 5, 3, 7)], -1)
    part = rotate(longer, angles.cos(), angles.sin())
    torch.testing.assert_close(part[..., :10], turned)
    assert torch.equal(part[..., 10:], longer[..., 10:])


def _paged(tokens: Tensor, num_pages: int) -> Tensor:
    """[tokens, kv_heads, dim] as pages [pages, kv_heads, PAGE_TOKENS, padded(dim)]."""
    count, kv_heads, dim = tokens.shape
    pages = torch.zeros(num_pages * PAGE_TOKENS, kv_heads, padded(dim))
    pages[:count, :, :dim] = tokens
    return pages.view(num_pages, PAGE_TOKENS, kv_heads, -1).transpose(1, 2).contiguous()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 1, 10), (3, 3, 80), (8, 2, 128)])
def test_attention_is_the_references_and_row_exact(heads: int, kv_heads: int, dim: int, tile: int) -> None:
    """Attention agrees with its definition; a row has the same bits alone, in a chunk, and when later pages are there."""
    count, pages = 200, 4
    query, keys, values = (
        numbers(11, count, heads, dim),
        numbers(12, count, kv_heads, dim),
        numbers(13, count, kv_heads, dim),
    )
    paged, positions = (_paged(keys, pages), _paged(values, pages)), torch.arange(count)
    torch.set_num_threads(1)
    whole = paged_attention(4 * query, *paged, positions, tile)
    torch.testing.assert_close(whole, reference.attention(4 * query, keys, values, 0), rtol=1e-4, atol=1e-5)
    for threads in THREADS:
        torch.set_num_threads(threads)
        for first, n in ((0, 1), (63, 1), (64, 1), (199, 1), (5, 3), (60, 9), (10, 180)):
            held = -(-(first + n) // PAGE_TOKENS)
            here = slice(first, first + n)
            part = paged_attention(4 * query[here], paged[0][:held], paged[1][:held], positions[here], tile)
            assert torch.equal(part, whole[here]), (threads, first, n)


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_attention_are_the_references_and_row_exact(name: str, tile: int) -> None:
    """Windows, caps, sinks and ALiBi agree with their definitions, and a row's bits are its own."""
    count, form = 200, FORMS[name]
    query, keys, values = 4 * numbers(21, count, 4, 10), numbers(22, count, 2, 10), numbers(23, count, 2, 10)
    paged, positions = (_paged(keys, 4), _paged(values, 4)), torch.arange(count)
    torch.set_num_threads(1)
    whole = paged_attention(query, *paged, positions, tile, form)
    expected = reference.attention(query, keys, values, 0, form.window, form.softcap, form.sinks, form.slopes)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    for threads in THREADS:
        torch.set_num_threads(threads)
        for first, n in ((0, 1), (63, 1), (64, 1), (199, 1), (5, 3), (60, 9), (10, 180)):
            held = -(-(first + n) // PAGE_TOKENS)
            here = slice(first, first + n)
            pages = paged[0][:held], paged[1][:held]
            assert torch.equal(paged_attention(query[here], *pages, positions[here], tile, form), whole[here])


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_attention_over_many_pages_are_row_exact(name: str, tile: int) -> None:
    """Groups of pages that a window leaves out are not computed, with the same bits for one row and for many."""
    pages, form = 3 * GROUP_PAGES + 1, FORMS[name]
    count = pages * PAGE_TOKENS - 5
    keys, values = numbers(24, count, 1, 16), numbers(25, count, 1, 16)
    paged, positions = (_paged(keys, pages), _paged(values, pages)), torch.arange(count)
    group = GROUP_PAGES * PAGE_TOKENS
    asked = torch.tensor([0, 70, group - 1, group, group + 31, group + 32, 2 * group + 69, 2 * group + 70, count - 1])
    query = 6 * numbers(26, count, 4, 16)[asked]
    together = paged_attention(query, *paged, positions[asked], tile, form)
    for index, position in enumerate(asked.tolist()):
        held = position // PAGE_TOKENS + 1
        one = slice(index, index + 1)
        alone = paged_attention(query[one], paged[0][:held], paged[1][:held], asked[one], tile, form)
        assert torch.equal(alone[0], together[index]), position
        seen = keys[: position + 1], values[: position + 1]
        expected = reference.attention(query[one], *seen, position, form.window, form.softcap, form.sinks, form.slopes)
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


def test_attention_over_many_pages_is_row_exact(tile: int) -> None:
    """Beyond one group of pages the running maximum takes over, with the same bits for one row and for many."""
    pages = 2 * GROUP_PAGES + 1
    count = pages * PAGE_TOKENS - 5
    keys, values = numbers(14, count, 1, 16), numbers(15, count, 1, 16)
    paged, positions = (_paged(keys, pages), _paged(values, pages)), torch.arange(count)
    asked = torch.tensor([0, 70, 64 * GROUP_PAGES - 1, 64 * GROUP_PAGES, 64 * GROUP_PAGES + 1, count - 1])
    query = 6 * numbers(16, count, 2, 16)[asked]
    together = paged_attention(query, *paged, positions[asked], tile)
    for index, position in enumerate(asked.tolist()):
        held = position // PAGE_TOKENS + 1
        one = slice(index, index + 1)
        alone = paged_attention(query[one], paged[0][:held], paged[1][:held], asked[one], tile)
        assert torch.equal(alone[0], together[index]), position
        expected = reference.attention(query[one], keys[: position + 1], values[: position + 1], position)
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


def test_masked_keys_are_selected_out(tile: int) -> None:
    """A key that a row may not see does not reach it, were it infinite or NaN."""
    keys, values, query = numbers(17, 70, 1, 8), numbers(18, 70, 1, 8), numbers(19, 1, 2, 8)
    paged = _paged(keys, 2), _paged(values, 2)
    expected = paged_attention(query, *paged, torch.tensor([65]), tile)
    paged[0][1, :, 3:] = float("nan")
    paged[0][1, :, 2] = float("inf")
    assert torch.equal(paged_attention(query, *paged, torch.tensor([65]), tile), expected)
