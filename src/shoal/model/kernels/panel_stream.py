"""Packed matrices as the compiled kernels read them: for each panel of 64 outputs one stream of bytes.

See docs/concepts/packed-form.md, "In panels", and native/src/abi.h.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.model.quant.packed_matrix import Levels, PackedMatrix, Section

Array = npt.NDArray[Any]

PANEL = 64
STEP = 32
"""Stored inputs whose codes lie together."""
LINE = 64
"""Bytes that a processor's cache has and gets at once: codes begin there."""
HALF = 16
"""The smallest group: two share a step."""

NONE, UNSIGNED, SIGNED, NIBBLES = range(4)
"""What whole numbers beside a group are stored as."""
UNIT_KINDS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
MOST = 255
"""Zeros and whole numbers are no larger."""


class StreamForm(NamedTuple):
    """What says where everything lies in a section's stream. `group` and `steps` count stored inputs with their padding."""

    bits: int
    steps: int
    group: int
    unit_groups: int
    unit_kind: int
    step_kind: int
    squared: bool
    minima: bool
    zero_kind: int
    zero: int
    shared: bool

    @property
    def groups(self) -> int:
        """How many there are."""
        return -(-self.steps * STEP // self.group)


class StreamPlaces(NamedTuple):
    """Where a panel's stream has, in bytes: units and minima's units, whole numbers of both, zeros; codes of each step."""

    units: list[int]
    minimum_units: list[int]
    steps: list[int]
    minimum_steps: list[int]
    zeros: list[int]
    codes: list[int]
    size: int


def _width(kind: int) -> int:
    return {NONE: 0, NIBBLES: PANEL // 2}.get(kind, PANEL)


@functools.lru_cache(maxsize=256)
def places_of(form: StreamForm) -> StreamPlaces:
    """Where everything lies: of each group its units (where they change), whole numbers and zeros, then all codes."""
    places, at = StreamPlaces([], [], [], [], [], [], 0), 0
    unit_bytes = PANEL * (4 if form.unit_kind == UNIT_KINDS[torch.float32] else 2)

    def put(where: list[int], size: int) -> None:
        nonlocal at
        where.append(at)
        at += size

    for group in range(form.groups):
        if not form.shared and group % form.unit_groups == 0:
            put(places.units, unit_bytes)
            if form.minima:
                put(places.minimum_units, unit_bytes)
        if form.step_kind:
            put(places.steps, _width(form.step_kind))
            if form.minima:
                put(places.minimum_steps, _width(form.step_kind))
        if form.zero_kind:
            put(places.zeros, _width(form.zero_kind))
    at += -at % LINE
    for _ in range(form.steps):
        put(places.codes, form.bits * PANEL * 4)
    return places._replace(size=at)


class PanelSection(NamedTuple):
    """A section in streams; `units` in fp32 where all outputs share them, `table` where there is one.

    `inputs` and `given_group` are as they were without padding.
    """

    form: StreamForm
    units: Tensor | None
    table: Tensor | None
    inputs: int
    given_group: int


class PanelStreams(NamedTuple):
    """A packed matrix in streams [panels, bytes]; `order` int32 [stored]: see native/src/abi.h."""

    data: Tensor
    sections: tuple[PanelSection, ...]
    order: Tensor | None
    outputs: int
    inputs: int

    @property
    def stored(self) -> int:
        """Stored inputs with their padding."""
        return sum(section.form.steps * STEP for section in self.sections)

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        parts = [self.data, self.order, *(one for part in self.sections for one in (part.units, part.table))]
        return sum(part.nbytes for part in parts if part is not None)


def in_streams(matrix: PackedMatrix) -> PanelStreams:
    """A packed matrix in streams. Raises ValueError for levels that have no place there."""
    parts, sections, indices, first = [], [], [], 0
    for section in matrix.sections:
        index = _padded_inputs(section)
        codes = matrix.codes[:, first : first + section.inputs].numpy()
        made, data = _section(section, codes, index)
        indices.append(np.where(index < 0, -1, index + first))
        sections.append(made)
        parts.append(data)
        first += section.inputs
    order = _order(np.concatenate(indices), matrix.order)
    # Made by torch, whose memory begins at a line.
    whole = torch.empty(len(parts[0]), sum(part.shape[1] for part in parts), dtype=torch.uint8)
    np.concatenate(parts, 1, out=whole.numpy())
    return PanelStreams(whole, tuple(sections), order, *matrix.shape)


def _padded_group(section: Section) -> int:
    if section.group <= HALF:
        return HALF
    return -(-min(section.group, section.inputs) // STEP) * STEP


def _padded_inputs(section: Section) -> Array:
    """For every stored input with the padding: which of the section's it is, or −1."""
    group, count = _padded_group(section), section.groups
    index = np.full((count, group), -1, np.int64)
    inputs = np.arange(section.inputs)
    index[inputs // section.group, inputs % section.group] = inputs
    last = section.inputs - (count - 1) * section.group
    least = HALF if group == HALF else STEP
    flat = index.reshape(-1)[: (count - 1) * group + -(-last // least) * least]
    return np.append(flat, np.full(-len(flat) % STEP, -1))


def _order(index: Array, order: Tensor | None) -> Tensor | None:
    """Which input each stored one is; None: they are in order, with no padding but at the end."""
    known = index[: np.count_nonzero(index >= 0)]
    if order is None and np.array_equal(known, np.arange(len(known))):
        return None
    inputs = index if order is None else np.where(index < 0, -1, order.numpy()[np.maximum(index, 0)])
    return torch.from_numpy(inputs.astype(np.int32))


def _section(section: Section, codes: Array, index: Array) -> tuple[PanelSection, Array]:
    zero, zeros = _zeros(section)
    form, units = _form(section, zero, zeros, len(index) // STEP)
    places, outputs = places_of(form), len(codes)
    data = np.zeros((-(-outputs // PANEL), places.size), np.uint8)
    _put_codes(data, form, places, codes, index)
    if units is None:
        _put(data, places.units, _bytes(section.scales.units.expand(outputs, -1)))
    if section.minima is not None:
        _put(data, places.minimum_units, _bytes(section.minima.units.to(section.scales.units.dtype)))
    for where, level in ((places.steps, section.scales), (places.minimum_steps, section.minima)):
        if level is not None and level.steps is not None:
            _put(data, where, _whole(level.steps.numpy(), form.step_kind), _width(form.step_kind))
    if zeros is not None:
        _put(data, places.zeros, _whole(zeros, form.zero_kind), _width(form.zero_kind))
    table = None if section.table is None else torch.tensor(section.table, dtype=torch.float32)
    return PanelSection(form, units, table, section.inputs, section.group), data


def _zeros(section: Section) -> tuple[int, Array | None]:
    """The zero that all have, and what outputs have beside it: nothing, where that is the same for all."""
    if section.zeros is None:
        return section.zero, None
    zeros = section.zeros.numpy().astype(np.int64)
    least = int(zeros.min())
    return section.zero + least, None if (zeros == least).all() else zeros - least


def _form(section: Section, zero: int, zeros: Array | None, steps: int) -> tuple[StreamForm, Tensor | None]:
    scales, minima = section.scales, section.minima
    whole = [level.steps for level in (scales, minima) if level is not None and level.steps is not None]
    if minima is not None and (minima.groups_per_unit != scales.groups_per_unit or len(whole) == 1 or scales.squared):
        raise ValueError("minima have other levels than their scales")
    if not 0 <= zero <= MOST or (zeros is not None and zeros.max() > MOST):
        raise ValueError("zeros are out of bounds")
    shared = scales.units.shape[0] == 1 and minima is None and section.table is None
    form = StreamForm(
        bits=section.bits,
        steps=steps,
        group=_padded_group(section),
        unit_groups=scales.groups_per_unit,
        unit_kind=UNIT_KINDS[scales.units.dtype],
        step_kind=_kind([step.numpy() for step in whole]),
        squared=scales.squared,
        minima=minima is not None,
        zero_kind=NONE if zeros is None else _kind([zeros]),
        zero=zero,
        shared=shared,
    )
    return form, _shared_units(scales.units[0], form) if shared else None


def _shared_units(units: Tensor, form: StreamForm) -> Tensor:
    """In fp32, also for a group that only fills a step up."""
    missing = -(-form.groups // form.unit_groups) - len(units)
    return torch.nn.functional.pad(units.to(torch.float32), (0, max(0, missing))).contiguous()


def _kind(numbers: list[Array]) -> int:
    """The smallest that holds whole numbers."""
    if not numbers:
        return NONE
    if min(int(some.min(initial=0)) for some in numbers) < 0:
        return SIGNED
    return NIBBLES if max(int(some.max(initial=0)) for some in numbers) < 16 else UNSIGNED


def _put_codes(data: Array, form: StreamForm, places: StreamPlaces, codes: Array, index: Array) -> None:
    """Outputs that fill a panel up have the code for nothing, whatever their scale."""
    nothing = min(form.zero, (1 << form.bits) - 1)
    stored = np.full((len(data) * PANEL, len(index)), nothing, np.uint8)
    stored[: len(codes)] = np.where(index < 0, 0, codes[:, np.maximum(index, 0)])
    quads = stored.reshape(len(data), PANEL, form.steps, STEP // 4, 4).transpose(0, 2, 3, 1, 4)
    planes = np.concatenate([_plane(quads, bits, first) for bits, first in _planes(form.bits)], 2)
    size = form.bits * PANEL * 4
    for step, at in enumerate(places.codes):
        data[:, at : at + size] = planes[:, step].reshape(len(data), size)


def _planes(bits: int) -> list[tuple[int, int]]:
    """Widths of the planes that codes are cut into, and each one's first bit: low bits first."""
    low = 8 if bits == 8 else 4 if bits >= 4 else 2
    return [(low, 0)] if bits == low else [(low, 0), (bits - low, low)]


def _plane(quads: Array, bits: int, first: int) -> Array:
    """[panels, steps, 8, 64, 4] codes → [panels, steps, bits, 64, 4] bytes with some bits of all of them."""
    each = 8 // bits
    some = quads >> first & ((1 << bits) - 1)
    parted = some.reshape(*some.shape[:2], bits, each, PANEL, 4)
    out = np.zeros_like(parted[:, :, :, 0])
    for quad in range(each):
        out |= parted[:, :, :, quad] << bits * quad
    return out


def _bytes(units: Tensor) -> Array:
    """[outputs, units] → [outputs, units, bytes of one]."""
    size = units.dtype.itemsize
    return units.contiguous().view(torch.uint8).numpy().reshape(*units.shape, size)


def _whole(numbers: Array, kind: int) -> Array:
    """[outputs, groups] → bytes [outputs, groups, 1]; of nibbles two outputs of a panel share one."""
    if kind != NIBBLES:
        return numbers.astype(np.int8 if kind == SIGNED else np.uint8).view(np.uint8)[..., None]
    outputs = -(-len(numbers) // PANEL) * PANEL
    whole = np.zeros((outputs, numbers.shape[1]), np.uint8)
    whole[: len(numbers)] = numbers
    halves = whole.reshape(-1, 2, PANEL // 2, numbers.shape[1])
    return (halves[:, 0] | halves[:, 1] << 4).reshape(-1, numbers.shape[1], 1)


def _put(data: Array, where: list[int], numbers: Array, lanes: int = PANEL) -> None:
    """Numbers [outputs, n, bytes], `lanes` of each panel, at n places; what fills the last panel up is zero."""
    panels, size = len(data), numbers.shape[2]
    whole = np.zeros((panels * lanes, *numbers.shape[1:]), np.uint8)
    whole[: len(numbers)] = numbers
    by_panel = whole.reshape(panels, lanes, numbers.shape[1], size).transpose(0, 2, 1, 3)
    for number, at in enumerate(where[: numbers.shape[1]]):
        data[:, at : at + lanes * size] = by_panel[:, number].reshape(panels, lanes * size)


# Back again


def outputs_of(streams: PanelStreams, outputs: list[int]) -> PackedMatrix:
    """Some outputs' codes and levels, as they were packed."""
    panels, lanes = np.divmod(np.array(outputs, np.int64), PANEL)
    rows = streams.data.numpy()[panels]
    codes, sections, at = [], [], 0
    for section in streams.sections:
        places = places_of(section.form)
        codes.append(_codes(rows[:, at : at + places.size], lanes, section, places))
        sections.append(_levels(rows[:, at : at + places.size], lanes, section, places))
        at += places.size
    order = None
    if streams.order is not None:
        kept = np.concatenate([_kept(section) for section in streams.sections])
        order = streams.order[torch.from_numpy(kept)].to(torch.int64)
    return PackedMatrix(torch.from_numpy(np.concatenate(codes, 1)), tuple(sections), order)


def _kept(section: PanelSection) -> Array:
    shape = Section(section.inputs, section.form.bits, section.given_group, Levels(torch.empty(0)))
    return _padded_inputs(shape) >= 0


def _codes(rows: Array, lanes: Array, section: PanelSection, places: StreamPlaces) -> Array:
    form = section.form
    words = np.array(places.codes)[:, None, None] + np.arange(form.bits)[:, None] * PANEL * 4 + np.arange(4)
    taken = np.take_along_axis(rows, (words.reshape(1, -1) + 4 * lanes[:, None]), 1)
    taken = taken.reshape(len(rows), form.steps, form.bits, 4)
    out, word = np.zeros((len(rows), form.steps, STEP // 4, 4), np.uint8), 0
    for bits, first in _planes(form.bits):
        plane = taken[:, :, word : word + bits]
        each = [plane >> bits * quad & ((1 << bits) - 1) for quad in range(8 // bits)]
        out |= np.stack(each, 3).reshape(out.shape) << first
        word += bits
    return out.reshape(len(rows), -1)[:, _kept(section)]


def _levels(rows: Array, lanes: Array, section: PanelSection, places: StreamPlaces) -> Section:
    form, groups = section.form, -(-section.inputs // section.given_group)
    dtype = {kind: dtype for dtype, kind in UNIT_KINDS.items()}[form.unit_kind]

    def units(where: list[int]) -> Tensor:
        found = _lane(rows, where, lanes * dtype.itemsize, dtype.itemsize)
        return torch.from_numpy(found.reshape(len(rows), -1)).view(dtype)

    def whole(where: list[int], kind: int) -> Tensor:
        half = PANEL // 2
        if kind != NIBBLES:
            found = _lane(rows, where, lanes, 1)[..., 0]
            return torch.from_numpy(found.view(np.int8) if kind == SIGNED else found)[:, :groups]
        found = _lane(rows, where, lanes % half, 1)[..., 0]
        return torch.from_numpy(found >> np.where(lanes < half, 0, 4)[:, None].astype(np.uint8) & 15)[:, :groups]

    shared = None if section.units is None else section.units[None].to(dtype)
    steps = whole(places.steps, form.step_kind) if form.step_kind else None
    scales = Levels(shared if shared is not None else units(places.units), steps, form.unit_groups, form.squared)
    minima = None
    if form.minima:
        least = whole(places.minimum_steps, form.step_kind) if form.step_kind else None
        minima = Levels(units(places.minimum_units), least, form.unit_groups)
    zeros = whole(places.zeros, form.zero_kind) if form.zero_kind else None
    table = None if section.table is None else tuple(int(number) for number in section.table)
    return Section(section.inputs, form.bits, section.given_group, scales, form.zero, zeros, minima, table)


def _lane(rows: Array, where: list[int], at: Array, size: int) -> Array:
    """[n, places, size] bytes: each output's own at all places."""
    index = np.array(where)[None, :, None] + at[:, None, None] + np.arange(size)
    return np.take_along_axis(rows, index.reshape(len(rows), -1), 1).reshape(len(rows), len(where), size)
