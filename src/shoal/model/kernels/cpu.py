"""The compiled kernels through ctypes: structs as in native/src/abi.h, and a context of threads that runs them."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Array, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from shoal.model.kernels.panel_stream import PanelStreams
from shoal.model.kernels.panels import PACKED, PANEL, STEP, PanelMatrix, Panels

ABI = 5
_LOGGER = logging.getLogger(__name__)

AVX2, AVX512 = 2, 5
"""Instruction sets, by the kernels' numbers."""

MAX_THREADS = 1024

VARIABLE = "SHOAL_KERNELS"
"""Set to `torch` it leaves the compiled kernels alone; `avx2` keeps them from using more than that."""


class SectionStruct(Structure):
    """A section of a packed matrix."""

    _fields_ = [
        ("units", c_void_p),
        ("table", c_void_p),
        *((name, c_int32) for name in ("bits", "steps", "group", "unit_groups", "unit_kind", "step_kind")),
        *((name, c_int32) for name in ("squared", "minima", "zero_kind", "zero")),
    ]


class MatrixStruct(Structure):
    """A matrix of a linear layer."""

    _fields_ = [
        ("data", c_void_p),
        ("sections", c_void_p),
        ("order", c_void_p),
        ("panel_bytes", c_int64),
        *((name, c_int32) for name in ("kind", "n", "first", "stored", "num_sections", "unused")),
    ]


class LinearStruct(Structure):
    """A linear layer. What it points to is kept with the object that `linear_struct` returned."""

    _fields_ = [
        ("matrices", c_void_p),
        ("bias", c_void_p),
        *((name, c_int32) for name in ("n", "k", "num_matrices", "int8_rows")),
    ]
    kept: tuple[Any, ...] = ()

    def keeping(self, *things: Any) -> LinearStruct:
        """The same, which keeps what it points to."""
        self.kept = things
        return self


class ShapeStruct(Structure):
    """What all blocks share."""

    _fields_ = [(name, c_int32) for name in ("hidden", "heads", "kv_heads", "head_dim", "intermediate")]


class CacheStruct(Structure):
    """The pages of all sessions."""

    _fields_ = [
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, c_int32) for name in ("kind", "width", "pages", "turning")),
    ]


class PartStruct(Structure):
    """A session's rows in a batch."""

    _fields_ = [
        ("table", c_void_p),
        ("stride", c_int64),
        *((name, c_int32) for name in ("position", "first", "rows", "unused")),
    ]


class AnglesStruct(Structure):
    """Cosines and sines of a batch's rows."""

    _fields_ = [("cos", c_void_p), ("sin", c_void_p)]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None: not installed, not for this processor, or switched off (`$SHOAL_KERNELS`)."""
    if os.environ.get(VARIABLE) == "torch" or sys.byteorder != "little":
        return None
    try:
        from shoal_kernels import LIBRARY
    except ImportError:
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        _LOGGER.warning("the shoal-kernels that are installed cannot be loaded: it computes in plain torch (%s)", error)
        return None
    if (abi := found.shoal_abi()) != ABI:
        _LOGGER.warning(
            "the shoal-kernels that are installed have interface %d, this Shoal needs %d: it computes in plain torch",
            abi,
            ABI,
        )
        return None
    if not found.shoal_isa(AVX512):
        return None
    found.shoal_block_fields.restype = c_char_p
    found.shoal_open.restype = c_void_p
    found.shoal_close.argtypes = [c_void_p]
    found.shoal_close.restype = None
    found.shoal_linear.argtypes = [
        c_void_p,
        POINTER(LinearStruct),
        c_void_p,
        c_float,
        c_void_p,
        c_int32,
        c_void_p,
        c_int64,
    ]
    found.shoal_linear.restype = c_char_p
    found.shoal_read.argtypes = [c_void_p, c_void_p, c_int64, c_int32]
    found.shoal_read.restype = c_char_p
    found.shoal_step.argtypes = [
        *(c_void_p, POINTER(ShapeStruct), c_void_p, c_int32, POINTER(CacheStruct)),
        *(POINTER(PartStruct), c_int32, POINTER(AnglesStruct), c_void_p, c_int32),
    ]
    found.shoal_step.restype = c_char_p
    return found


@functools.cache
def block_fields() -> Mapping[str, str]:
    """What the kernels know of a block, by name in the struct's order: "linear", "vector", "number" or "integer".

    Empty where there are no kernels.
    """
    found = library()
    pairs = [] if found is None else found.shoal_block_fields().decode().split()
    return {name: kind for kind, _, name in (pair.partition(":") for pair in pairs)}


@functools.cache
def block_numbers() -> frozenset[str]:
    """The names of a block's numbers and integers."""
    return frozenset(name for name, kind in block_fields().items() if kind in ("number", "integer"))


@functools.cache
def block_struct() -> type[Structure]:
    """A block as the kernels take it, laid out by `block_fields`; raises RuntimeError where its size is not theirs."""
    fields = [(name, _TYPES[kind]) for name, kind in block_fields().items()]
    struct = type("BlockStruct", (Structure,), {"_fields_": fields})
    found = library()
    if found is None or ctypes.sizeof(struct) != found.shoal_block_bytes():
        raise RuntimeError(f"the compiled kernels' blocks are not {ctypes.sizeof(struct)} bytes large")
    return struct


_TYPES = {"linear": LinearStruct, "vector": c_void_p, "number": c_float, "integer": c_int32}


def available() -> bool:
    """Whether the compiled kernels can be used here."""
    return library() is not None


def instruction_set(limit: int | None = None) -> int:
    """The instruction set that is used, AVX2 or AVX512, within a limit; 0 for none."""
    found = library()
    return 0 if found is None else int(found.shoal_isa(_limit(limit)))


def _limit(limit: int | None) -> int:
    if limit is not None:
        return limit
    return AVX2 if os.environ.get(VARIABLE) == "avx2" else AVX512


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous CPU tensor lies; the caller keeps it alive."""
    return None if tensor is None else tensor.data_ptr()


def linear_struct(panels: Panels) -> LinearStruct:
    """A linear layer as the kernels take it; valid as long as the object lives, not a copy of it."""
    first, sections, structs = 0, [], []
    for matrix in panels.matrices:
        of_matrix = _section_structs(matrix)
        sections.append(of_matrix)
        structs.append(_matrix_struct(matrix, first, of_matrix))
        first += matrix.outputs
    matrices = (MatrixStruct * len(structs))(*structs)
    sizes = panels.out_features, panels.in_features, len(structs), panels.int8_rows
    struct = LinearStruct(ctypes.addressof(matrices), address(panels.bias), *sizes)
    return struct.keeping(panels, matrices, sections)


def _section_structs(matrix: PanelMatrix) -> Array[Any] | None:
    if not isinstance(matrix, PanelStreams):
        return None
    structs = [
        SectionStruct(
            address(section.units),
            address(section.table),
            *(form.bits, form.steps, form.group, form.unit_groups, form.unit_kind, form.step_kind),
            *(form.squared, form.minima, form.zero_kind, form.zero),
        )
        for section in matrix.sections
        for form in (section.form,)
    ]
    return (SectionStruct * len(structs))(*structs)


def _matrix_struct(matrix: PanelMatrix, first: int, sections: Array[Any] | None) -> MatrixStruct:
    if isinstance(matrix, PanelStreams):
        at = None if sections is None else ctypes.addressof(sections)
        sizes = PACKED, matrix.outputs, first, matrix.stored, len(matrix.sections), 0
        return MatrixStruct(address(matrix.data), at, address(matrix.order), matrix.data.shape[1], *sizes)
    stored = -(-matrix.inputs // STEP) * STEP
    return MatrixStruct(address(matrix.data), None, None, 0, matrix.kind, matrix.outputs, first, stored, 0, 0)


def block_pointers(blocks: Sequence[Structure]) -> Array[Any]:
    """Blocks as the kernels take a row of them; the caller keeps them alive."""
    return (c_void_p * len(blocks))(*map(ctypes.addressof, blocks))


def _check_call(wrong: bytes | None) -> None:
    """Raise ValueError with what the kernels found wrong with a call."""
    if wrong is not None:
        raise ValueError(f"the compiled kernels refuse the call: {wrong.decode()}")


def _check_floats(tensor: Tensor, what: str) -> None:
    if tensor.dtype != torch.float32 or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"{what}: {tensor.dtype} on {tensor.device} is not contiguous fp32 on the CPU")


class Context:
    """Threads that compute, and their memory. One call at a time; closing twice is harmless.

    `non_temporal`: weights that are read once are asked for past the caches; None: where that suits the processor. The bits
    are the same.
    """

    def __init__(self, threads: int, limit: int | None = None, non_temporal: bool | None = None) -> None:
        self._handle: Any = None
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"{threads} threads are not from 1 to {MAX_THREADS}")
        found = library()
        if found is None:
            raise RuntimeError("the compiled kernels are not available")
        self.threads = threads
        self._library = found
        hint = -1 if non_temporal is None else int(non_temporal)
        self._handle = found.shoal_open(c_int32(threads), c_int32(_limit(limit)), c_int32(hint))
        if not self._handle:
            raise RuntimeError(f"the compiled kernels cannot be run on {threads} threads")

    def close(self) -> None:
        """End the threads."""
        handle, self._handle = self._handle, None
        if handle:
            self._library.shoal_close(handle)

    def __del__(self) -> None:
        self.close()

    def linear(self, linear: LinearStruct, rows: Tensor, out: Tensor) -> None:
        """Rows [n, in] → rows Wᵀ + b into `out`, contiguous in fp32, [at least n, at least out filled up to panels of 64].

        Raises ValueError for other shapes.
        """
        rows = rows.to(torch.float32).contiguous()
        if rows.ndim != 2 or rows.shape[1] != linear.k:
            raise ValueError(f"rows of shape {list(rows.shape)} are not [n, {linear.k}]")
        room = (rows.shape[0], -(-linear.n // PANEL) * PANEL)
        _check_floats(out, "the room for a product")
        if out.ndim != 2 or out.shape[0] < room[0] or out.shape[1] < room[1]:
            raise ValueError(f"room of shape {list(out.shape)} is less than {list(room)}")
        if not rows.shape[0]:
            return
        first_row, room_at = rows.data_ptr(), out.data_ptr()
        _check_call(
            self._library.shoal_linear(self._handle, linear, None, 0.0, first_row, rows.shape[0], room_at, out.shape[1])
        )

    def read(self, data: Tensor, pieces: int) -> None:
        """Read a contiguous tensor in fp32 once, on all threads, every piece as four streams: what no step can beat."""
        _check_floats(data, "what is read")
        if pieces < 1:
            raise ValueError(f"there are no {pieces} pieces")
        _check_call(self._library.shoal_read(self._handle, data.data_ptr(), data.numel(), pieces))

    def step(
        self,
        shape: ShapeStruct,
        blocks: Array[Any],
        cache: CacheStruct,
        parts: Sequence[PartStruct],
        angles: Sequence[AnglesStruct],
        rows: Tensor,
    ) -> None:
        """Rows [n, hidden] in fp32, contiguous, through `blocks` (see `block_pointers`), in place.

        What the structs point to is the caller's to keep. Raises ValueError for rows that are not what blocks and parts say.
        """
        _check_floats(rows, "rows")
        if rows.ndim != 2 or rows.shape[1] != shape.hidden or rows.shape[0] != sum(part.rows for part in parts):
            raise ValueError(
                f"rows of shape {list(rows.shape)} are not those of {len(parts)} parts, {shape.hidden} wide"
            )
        if not rows.shape[0] or not len(blocks):
            return
        both = (AnglesStruct * 2)(*angles, *([AnglesStruct()] * (2 - len(angles))))
        sessions = (PartStruct * len(parts))(*parts)
        count, first_row = rows.shape[0], rows.data_ptr()
        _check_call(
            self._library.shoal_step(
                *(self._handle, shape, blocks, len(blocks), cache, sessions, len(parts), both, first_row, count)
            )
        )
