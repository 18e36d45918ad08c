"""The compiled kernels refuse every call that cannot be right, in words, and do nothing: whatever calls them."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from shoal.engine.native import CACHE_KINDS, NativeBlock
from shoal.engine.native_proof import canned
from shoal.kv.cache import KVCache
from shoal.model.kernels import cpu
from shoal.model.kernels.panels import pack
from shoal.model.kernels.quantized import Matrix, quantize, weights_of
from shoal.model.kernels.tiles import padded
from tests.kernels.natively import needs_kernels
from tests.support import packed_matrices
from tests.support.tiny_models import SMOLLM2

pytestmark = needs_kernels

ROWS, OUTPUTS, INPUTS = 3, 70, 48
POSITION, PAGES = 60, 4
MOST = 2**31 - 1


class Call(NamedTuple):
    """A right call: its function, its arguments by name, and what keeps them alive."""

    function: str
    arguments: dict[str, Any]
    keep: list[Any]

    def run(self, context: Any = None) -> str | None:
        """What the kernels say of it."""
        library = cpu.library()
        assert library is not None
        opened = library.shoal_open(c_int32(1), c_int32(cpu.AVX512), c_int32(-1))
        try:
            handle = opened if context is None else context
            said: bytes | None = getattr(library, self.function)(handle, *self.arguments.values())
            return None if said is None else said.decode()
        finally:
            library.shoal_close(opened)


def at(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())


def product(kind: str = "f32") -> Call:
    """Rows through a matrix."""
    weight = torch.ones(OUTPUTS, INPUTS)
    matrix: Matrix = {
        "f32": lambda: weight,
        "bf16": lambda: weight.bfloat16(),
        "codes": lambda: quantize(weight, 4),
        "minima": lambda: packed_matrices.of_form("minima", OUTPUTS, INPUTS, 2, 16),
        "table": lambda: packed_matrices.of_form("table", OUTPUTS, INPUTS),
        "ordered": lambda: packed_matrices.mixed(OUTPUTS, INPUTS),
    }[kind]()
    panels = pack(matrix)
    rows, out, norm = torch.ones(ROWS, INPUTS), torch.zeros(ROWS, 128), torch.ones(INPUTS)
    arguments = {
        "matrix": cpu.linear_struct(panels),
        "norm": at(norm),
        "eps": c_float(1e-5),
        "rows": at(rows),
        "count": c_int32(ROWS),
        "out": at(out),
        "width": c_int64(128),
    }
    return Call("shoal_linear", arguments, [panels, rows, out, norm])


def reading() -> Call:
    """Reading of some floats."""
    data = torch.ones(4096)
    return Call("shoal_read", {"data": at(data), "count": c_int64(4096), "pieces": c_int32(2)}, [data])


def step(kv_dtype: str = "float32") -> Call:
    """Rows through a block, that begin within a page and end in the next."""
    cache = KVCache(SMOLLM2.cache_shape, PAGES, kv_dtype)
    block = NativeBlock(SMOLLM2, canned(SMOLLM2))
    rows = torch.zeros(ROWS + 7, SMOLLM2.hidden_size)
    angles = torch.ones(ROWS + 7, SMOLLM2.head_dim // 2)
    table = torch.tensor([[2, 1, -1]], dtype=torch.int32)
    addresses = (tensor.data_ptr() for tensor in cache.storage.tensors)
    shape = (SMOLLM2.hidden_size, SMOLLM2.num_heads, SMOLLM2.num_kv_heads, SMOLLM2.head_dim, SMOLLM2.intermediate_size)
    parts = (cpu.PartStruct * 2)(
        cpu.PartStruct(table.data_ptr(), 3, POSITION, 0, 7), cpu.PartStruct(table.data_ptr(), 3, 0, 7, ROWS)
    )
    arguments = {
        "shape": cpu.ShapeStruct(*shape),
        "blocks": cpu.block_pointers([block.struct]),
        "num_blocks": c_int32(1),
        "cache": cpu.CacheStruct(
            *addresses,
            kind=CACHE_KINDS[kv_dtype],
            width=padded(SMOLLM2.head_dim),
            pages=PAGES,
            turning=cache.storage.turning,
        ),
        "parts": parts,
        "num_parts": c_int32(2),
        "angles": (cpu.AnglesStruct * 2)(cpu.AnglesStruct(angles.data_ptr(), angles.data_ptr())),
        "rows": at(rows),
        "count": c_int32(ROWS + 7),
    }
    return Call("shoal_step", arguments, [cache, block, rows, angles, table])


PRODUCTS = ("f32", "bf16", "codes", "minima", "table", "ordered")

CALLS: dict[str, Callable[[], Call]] = {
    **{f"product {kind}": lambda kind=kind: product(kind) for kind in PRODUCTS},
    "reading": reading,
    **{f"step {kind}": lambda kind=kind: step(kind) for kind in CACHE_KINDS},
}


@pytest.mark.parametrize("name", CALLS)
def test_right_calls_are_run(name: str) -> None:
    """Those from which the wrong ones below are made."""
    assert CALLS[name]().run() is None


@pytest.mark.parametrize("name", CALLS)
def test_without_a_context(name: str) -> None:
    """As after `shoal_close`, whose pointer the caller has forgotten."""
    assert CALLS[name]().run(c_void_p(0)) == "there are no threads"


@pytest.mark.parametrize("name", CALLS)
def test_no_argument_may_be_missing_or_impossible(name: str) -> None:
    """Each pointer null, and each number negative, zero and as large as can be; only a norm may be left out."""
    for argument, value in CALLS[name]().arguments.items():
        if isinstance(value, c_float):
            wrongs: list[Any] = [c_float(-1.0), c_float(float("nan")), c_float(float("inf"))]
        elif isinstance(value, c_int32 | c_int64):
            wrongs = [type(value)(number) for number in (-1, -MOST - 1, MOST, 0)]
        else:
            wrongs = [None]
        for wrong in wrongs:
            call = CALLS[name]()
            call.arguments[argument] = wrong
            optional = argument == "norm" or (name == "reading" and argument == "count" and wrong.value in (0, MOST))
            if not optional:
                assert call.run(), (argument, wrong)


@pytest.mark.parametrize("argument", ["norm", "rows", "out"])
def test_floats_lie_where_floats_can(argument: str) -> None:
    """An address that is no multiple of four."""
    call = product()
    call.arguments[argument] = c_void_p(call.arguments[argument].value + 2)
    assert call.run()


FIELDS: dict[str, tuple[Callable[[Call], Any], dict[str, tuple[int | float | None, ...]]]] = {
    "layer": (
        lambda call: call.arguments["matrix"],
        {
            "matrices": (None, 3),
            "bias": (3,),
            "n": (-1, 0, OUTPUTS - 1, OUTPUTS + 64, MOST),
            "k": (-1, 0, INPUTS + 8, MOST),
            "num_matrices": (-1, 0, 17, MOST),
            "int8_rows": (1,),
        },
    ),
    "product f32": (
        lambda call: call.arguments["matrix"].kept[1][0],
        {
            "data": (None, 3),
            "kind": (-1, 2, 3),
            "n": (-1, 0, OUTPUTS + 1),
            "first": (-1, 1),
            "stored": (0, 40, 56, MOST),
        },
    ),
    "product ordered": (
        lambda call: call.arguments["matrix"].kept[1][0],
        {
            "data": (None, 3),
            "sections": (None, 3),
            "order": (2,),
            "panel_bytes": (-1, 0, 64, 1 << 40),
            "kind": (-1, 0, 3),
            "stored": (-32, 0, 32, 1 << 20, MOST),
            "num_sections": (-1, 0, MOST),
        },
    ),
    "product codes": (
        lambda call: call.arguments["matrix"].kept[2][0][0],
        {
            "units": (2, None),
            "bits": (-1, 0, 1, 2, 7, 9),
            "steps": (-1, 0, 1, 3, MOST),
            "group": (-32, 0, 8, 48, MOST),
            "unit_groups": (-1, 0),
            "unit_kind": (-1, 3),
            "step_kind": (-1, 0, 4),
            "zero_kind": (-1, 1, 2, 4),
            "zero": (-1, 256),
            "minima": (1,),
        },
    ),
    "product minima": (
        lambda call: call.arguments["matrix"].kept[2][0][0],
        {"group": (0, 24, 32), "unit_groups": (0, 1), "unit_kind": (2, 3), "minima": (0,), "bits": (3, 4)},
    ),
    "product table": (
        lambda call: call.arguments["matrix"].kept[2][0][0],
        {"table": (2,), "bits": (5,), "zero": (1,)},
    ),
    "shape": (
        lambda call: call.arguments["shape"],
        {
            "hidden": (-64, 0, 64, 1 << 25, MOST),
            "heads": (-1, 0, 7, 8, MOST),
            "kv_heads": (-1, 0, 2, 4, 9, MOST),
            "head_dim": (-1, 0, 63, 128, 513, MOST),
            "intermediate": (-1, 0, 64, MOST),
        },
    ),
    "cache": (
        lambda call: call.arguments["cache"],
        {
            "keys": (None, 2),
            "values": (None, 2),
            "kind": (-1, 3, 4, 5),
            "width": (-64, 0, 48, 72, 1024),
            "pages": (-1, 0, 2),
            "turning": (-MOST - 1, -1, 0, 3, 128, 1 << 30, MOST),
        },
    ),
    "part": (
        lambda call: call.arguments["parts"][0],
        {
            "table": (None, 2),
            "stride": (-1, 0, 1, 1 << 40),
            "position": (-1, 128, 1 << 30, MOST),
            "first": (-1, 1, MOST),
            "rows": (-1, 0, 6, 8, MOST),
        },
    ),
    "angles": (lambda call: call.arguments["angles"][0], {"cos": (None, 2), "sin": (None, 2)}),
    "block": (
        lambda call: call.keep[1].struct,
        {
            **dict.fromkeys(("attention_norm", "mlp_norm", "post_mlp_norm", "query_norm", "key_norm", "sinks"), (2,)),
            "norm_eps": (-1.0, float("nan"), float("inf")),
            "attn_softcap": (float("nan"), float("inf")),
            "query_scale": (float("nan"), float("inf")),
            "window": (-1, MOST),
            "activation": (-1, 2),
            "angles": (-1, 1, 2),
            "rotary_dim": (-2, 3, 66, MOST),
        },
    ),
    **{
        f"matrix {name}": (
            lambda call, name=name: getattr(call.keep[1].struct, name),
            {"matrices": (None, 3), "n": (0, 64 * 64, MOST), "k": (0, 64 * 64, MOST), "bias": (2,)},
        )
        for name in ("qkv", "output", "gate", "up", "down")
    },
}


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_may_be_impossible(name: str) -> None:
    """Each field of each struct: null, at an odd place, negative, too small for its place, too large for any."""
    struct, fields = FIELDS[name]
    for field, values in fields.items():
        for value in values:
            call = CALLS[name]() if name in CALLS else product() if name == "layer" else step()
            assert call.run() is None
            setattr(struct(call), field, value)
            assert call.run(), (field, value)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("field", ["key_scales", "value_scales"])
def test_quantized_caches_have_scales(kind: str, field: str) -> None:
    """Null, and an odd place."""
    for value in (None, 2):
        call = step(kind)
        setattr(call.arguments["cache"], field, value)
        assert call.run() == "the scales of the cache are missing"


@pytest.mark.parametrize("page", [-1, PAGES, MOST])
def test_pages_are_in_the_cache(page: int) -> None:
    """A page that the rows before these wrote, and one of a second session; what lies beyond the rows is not looked at."""
    for place in (0, 1):
        call = step()
        call.keep[4][0, place] = page
        assert call.run() == "a part names a page that the cache does not have"
    call = step()
    call.keep[4][0, 2] = page
    assert call.run() is None


@pytest.mark.parametrize("threads", [-MOST, -1, 0, 1025, MOST])
def test_there_are_that_many_threads(threads: int) -> None:
    """None are opened otherwise."""
    library = cpu.library()
    assert library is not None
    assert library.shoal_open(c_int32(threads), c_int32(cpu.AVX512), c_int32(-1)) is None


def test_a_refused_call_changes_nothing() -> None:
    """Neither the rows nor the cache."""
    call = step()
    cache, _, rows, _, table = call.keep
    before = [tensor.clone() for tensor in (rows, *cache.storage.tensors)]
    table[0, 1] = PAGES
    assert call.run()
    for old, new in zip(before, (rows, *cache.storage.tensors), strict=True):
        assert torch.equal(old, new)


def test_orders_are_read_within_the_rows() -> None:
    """An input that is not there is a zero."""
    for wrong in (INPUTS, MOST, -MOST):
        call = product("ordered")
        matrix = packed_matrices.mixed(OUTPUTS, INPUTS)
        order = call.arguments["matrix"].kept[0].matrices[0].order
        lost = int(order[5])
        order[5] = wrong
        assert call.run() is None
        expected = weights_of(matrix)
        expected[:, lost] = 0.0
        torch.testing.assert_close(call.keep[2][0, :OUTPUTS], expected.sum(1), atol=1e-4, rtol=1e-4)


def test_the_numbers_of_a_table_fit_a_byte() -> None:
    """Integers are multiplied by them."""
    for wrong in (128.0, -129.0, float("nan"), float("inf")):
        call = product("table")
        call.arguments["matrix"].kept[0].matrices[0].sections[0].table[3] = wrong
        assert call.run() == "a table is out of bounds"


def test_blocks_are_divided_into_the_same_matrices() -> None:
    """Panels are dealt out once for all blocks of a step; gate and up are one matrix each."""
    call = step()
    block = call.keep[1]
    other = NativeBlock(SMOLLM2, canned(SMOLLM2))
    halves = pack(
        [torch.ones(65, SMOLLM2.hidden_size), quantize(torch.ones(SMOLLM2.hidden_size - 65, SMOLLM2.hidden_size), 4)]
    )
    whole = cpu.linear_struct(halves)
    other.struct.output = whole
    call.arguments["blocks"], call.arguments["num_blocks"] = (
        cpu.block_pointers([block.struct, other.struct]),
        c_int32(2),
    )
    for part in call.arguments["parts"]:
        part.stride = 0
    assert call.run() in ("the blocks are not divided into the same matrices", "a part has fewer pages than tokens")
    call.arguments["blocks"], call.arguments["num_blocks"] = cpu.block_pointers([other.struct]), c_int32(1)
    sizes = (SMOLLM2.intermediate_size - 64, 64)
    gate = pack([quantize(torch.ones(size, SMOLLM2.hidden_size), 4) for size in sizes])
    kept = cpu.linear_struct(gate)
    other.struct.gate = kept
    assert call.run() == "gate and up are one matrix each"


def test_python_says_what_the_kernels_said() -> None:
    """As an error of whoever called."""
    linear = cpu.linear_struct(pack(torch.ones(OUTPUTS, INPUTS)))
    linear.kept[1][0].kind = 7
    with pytest.raises(ValueError, match="the compiled kernels refuse the call: there is no such kind of matrix"):
        cpu.Context(1).linear(linear, torch.ones(1, INPUTS), torch.ones(1, 128))
