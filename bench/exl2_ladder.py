"""ExLlamaV2's own way of choosing bits and scales, written from its description, to compare with.

A ladder of 19 options for the attention of a block and 17 for its MLP; the error of a module's output with the residual added;
a search for the least sum of errors to a power. ExLlama anneals; here each sum is made as small as it can be, which can only
help it. Then what is left of the bits is spent by walking through the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.model.quant.packed_matrix import squared_scales, unit_of
from shoal.quantize.allocation import Choice, allocate
from shoal.quantize.block_forward import BlockForward, Statistics, WeightsOfBlock
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.hessian import InverseFactor, factored
from shoal.quantize.rounding import RoundingRule, round_matrix
from shoal.quantize.row_groups import Groups, by_shares, stored_bits
from shoal.quantize.scale_search import GroupScales

DAMPING = 0.12
POINTS = 97
MEASURING_POINTS = 25
"""Of the search for scales while options are measured, which only ranks them."""

ERROR_POWER = 3.5
NORMS = tuple(1.5 + 0.125 * step for step in range(17))
LEAST_ERROR = 1e-6


class WidthShares(NamedTuple):
    """(bits, share of inputs) from the most bits down, and the group size of each width."""

    shares: tuple[tuple[int, float], ...]
    sizes: Mapping[int, int]


def _shares(sizes: str, *given: float) -> WidthShares:
    """`"32/64"` are the group sizes of the widths in order, the last one those of all further ones."""
    widths = [int(one) for one in given[0::2]]
    each = [int(one) for one in sizes.split("/")]
    each += [each[-1]] * (len(widths) - len(each))
    return WidthShares(tuple(zip(widths, given[1::2], strict=True)), dict(zip(widths, each, strict=True)))


def _flat(bits: int, size: int) -> WidthShares:
    return WidthShares(((bits, 1.0),), {bits: size})


_A1, _A2 = _shares("64", 3, 0.05, 2, 0.95), _shares("64", 3, 0.1, 2, 0.9)
_A3 = _shares("128", 4, 0.1, 3, 0.9)
_A5 = _shares("128", 5, 0.1, 4, 0.9)
ATTENTION: tuple[tuple[WidthShares, WidthShares, WidthShares], ...] = (  # q and k, v, o
    (_A1, _A1, _A1),
    (_A2, _shares("64", 3, 0.25, 2, 0.75), _A2),
    (_A2, _A3, _A2),
    (_A2, _A3, _A3),
    (_A3, _A3, _A3),
    (_A3, _shares("64", 4, 0.1, 3, 0.9), _A3),
    (_flat(4, 128), _flat(4, 128), _flat(4, 128)),
    (_flat(4, 128), _flat(4, 64), _flat(4, 128)),
    (_flat(4, 64), _flat(4, 32), _flat(4, 64)),
    (_flat(4, 32), _flat(4, 32), _flat(4, 32)),
    (_A5, _shares("64", 5, 0.1, 4, 0.9), _A5),
    (_shares("64", 5, 0.1, 4, 0.9), _shares("32", 5, 0.1, 4, 0.9), _shares("64", 5, 0.1, 4, 0.9)),
    (_shares("64", 5, 0.1, 4, 0.9), _flat(5, 64), _shares("64", 5, 0.1, 4, 0.9)),
    (_shares("32", 5, 0.1, 4, 0.9), _flat(5, 32), _shares("32", 5, 0.1, 4, 0.9)),
    (_shares("128", 6, 0.1, 5, 0.9), _flat(6, 128), _shares("128", 6, 0.1, 5, 0.9)),
    (_shares("32", 6, 0.1, 5, 0.9), _flat(6, 32), _shares("32", 6, 0.1, 5, 0.9)),
    (_flat(6, 128), _flat(6, 128), _flat(6, 128)),
    (_flat(6, 32), _flat(8, 32), _flat(6, 32)),
    (_flat(8, 128), _flat(8, 128), _flat(8, 128)),
)
_M1 = _shares("32/64", 6, 0.05, 3, 0.2, 2, 0.75)
MLP: tuple[tuple[WidthShares, WidthShares, WidthShares], ...] = (  # gate, up, down
    (_A1, _A1, _M1),
    (_A2, _shares("64", 3, 0.25, 2, 0.75), _M1),
    (_A2, _shares("64", 3, 0.3, 2, 0.7), _shares("32", 5, 0.05, 3, 0.95)),
    (_A2, _shares("64", 3, 0.3, 2, 0.7), _shares("32", 5, 0.05, 4, 0.95)),
    (_A3, _shares("128", 4, 0.25, 3, 0.75), _shares("32/128", 8, 0.05, 4, 0.1, 3, 0.85)),
    (
        _shares("32", 4, 0.1, 3, 0.9),
        _shares("32", 4, 0.25, 3, 0.75),
        _shares("32", 8, 0.05, 4, 0.1, 3, 0.85),
    ),
    (_shares("32", 4, 0.1, 3, 0.9), _shares("32", 4, 0.25, 3, 0.75), _shares("32/128", 8, 0.05, 4, 0.95)),
    (_flat(4, 128), _flat(4, 32), _shares("32/128", 8, 0.05, 4, 0.95)),
    (_flat(4, 32), _flat(4, 32), _shares("32", 8, 0.05, 4, 0.95)),
    (_A5, _shares("128", 5, 0.25, 4, 0.75), _shares("32/128", 8, 0.05, 5, 0.1, 4, 0.85)),
    (
        _shares("32", 5, 0.1, 4, 0.9),
        _shares("32", 5, 0.25, 4, 0.75),
        _shares("32", 8, 0.05, 5, 0.1, 4, 0.85),
    ),
    (
        _shares("128", 6, 0.1, 5, 0.9),
        _shares("128", 6, 0.25, 5, 0.75),
        _shares("32/128", 8, 0.05, 6, 0.1, 5, 0.85),
    ),
    (
        _shares("32", 6, 0.1, 5, 0.9),
        _shares("32", 6, 0.25, 5, 0.75),
        _shares("32", 8, 0.05, 6, 0.1, 5, 0.85),
    ),
    (_flat(6, 128), _flat(6, 128), _shares("32/128", 8, 0.05, 6, 0.95)),
    (_shares("128", 8, 0.1, 6, 0.9), _shares("128", 8, 0.1, 6, 0.9), _shares("128", 8, 0.15, 6, 0.85)),
    (_shares("128", 8, 0.1, 6, 0.9), _shares("128", 8, 0.1, 6, 0.9), _flat(8, 128)),
    (_flat(8, 128), _flat(8, 128), _flat(8, 128)),
)
_ROLES = {"q": 0, "k": 0, "v": 1, "o": 2, "gate": 0, "up": 1, "down": 2}


class LadderOption(NamedTuple):
    """The groups of each layer of a module by role, what they cost, and the error of the module's output."""

    groups: dict[str, Groups]
    bits: int
    error: float


def exl2_scales(rows: Tensor, weights: Tensor, bits: int, points: int = POINTS) -> GroupScales:
    """`ScaleSearch` as ExLlama does it: steps by the largest weight, one factor for all outputs, errors to the power of 3.5."""
    half = 1 << (bits - 1)
    base = (rows.abs().amax(0) + 1e-12) / ((2 * half - 1) / 2)
    top = base.max()
    steps = (16 * torch.sqrt(base / top)).round().clamp_(1, 16) - 1
    targets = top * ((steps + 1) / 16).square()

    def error(factor: float) -> float:
        scales = factor * targets
        tried = torch.round(rows / scales).clamp_(-half, half - 1)
        return float(tried.mul_(scales).sub_(rows).abs_().pow_(ERROR_POWER).sum())

    best = min((0.7 + 0.5 * point / (points - 1) for point in range(points)), key=error)
    largest = (top * best).to(torch.float16)
    return GroupScales(steps.to(torch.uint8), largest, squared_scales(steps, unit_of(largest)))


def measuring_scales(rows: Tensor, weights: Tensor, bits: int) -> GroupScales:
    """The same with fewer factors."""
    return exl2_scales(rows, weights, bits, MEASURING_POINTS)


RULE = RoundingRule(exl2_scales, DAMPING)


def measure_block(
    weights: WeightsOfBlock, layers: Sequence[QuantizedLayer], states: Tensor, forward: BlockForward
) -> list[list[LadderOption]]:
    """The options of a block's attention and of its MLP, measured on states [rows, length, hidden] before it."""
    observed, statistics = weights.observed()
    expected = forward(observed, states)
    ladder = _Ladder(weights, layers, statistics)
    without_mlp = {"down": torch.zeros_like(weights.matrix("down"))}
    attended = forward(weights.with_matrices(without_mlp), states)

    def error(matrices: dict[str, Tensor], goal: Tensor) -> float:
        return _module_error(forward(weights.with_matrices(matrices), states), goal)

    return [
        ladder.options(ATTENTION, ("q", "k", "v", "o"), lambda some: error({**without_mlp, **some}, attended)),
        ladder.options(MLP, ("gate", "up", "down"), lambda some: error(some, expected)),
    ]


class _Ladder:
    """Rounds a block's matrices; equal options of a layer are made once."""

    def __init__(self, weights: WeightsOfBlock, layers: Sequence[QuantizedLayer], statistics: Statistics) -> None:
        self._weights = weights
        self._shapes = {layer.role: layer.shape for layer in layers}
        shared = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
        self._factors: dict[str, InverseFactor] = {}
        for first, roles in shared.items():
            seen = statistics[first]
            self._factors |= dict.fromkeys(roles, factored(seen.products / seen.rows, DAMPING))
        self._made: dict[tuple[str, Groups], Tensor] = {}

    def options(
        self,
        table: Sequence[tuple[WidthShares, WidthShares, WidthShares]],
        roles: Sequence[str],
        error: Callable[[dict[str, Tensor]], float],
    ) -> list[LadderOption]:
        """A module's options; `error` is that of its output with these matrices."""
        made = []
        for row in table:
            groups = {role: self._groups(role, row[_ROLES[role]]) for role in roles}
            bits = sum(stored_bits(some, self._shapes[role]) for role, some in groups.items())
            matrices = {role: self._rounded(role, some) for role, some in groups.items()}
            made.append(LadderOption(groups, bits, error(matrices)))
        return made

    def _groups(self, role: str, shares: WidthShares) -> Groups:
        return by_shares(self._shapes[role].inputs, shares.shares, shares.sizes)

    def _rounded(self, role: str, groups: Groups) -> Tensor:
        """The weights [outputs, inputs] that are left."""
        if (role, groups) not in self._made:
            matrix = round_matrix(self._weights.matrix(role), self._factors[role], groups, measuring_scales)
            self._made[role, groups] = matrix.dequantized().to(torch.float16)
        return self._made[role, groups].to(torch.float32)


def _module_error(outputs: Tensor, expected: Tensor) -> float:
    """The mean over rows of the error's norm, as a share of the output's."""
    norms = (outputs - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return max(LEAST_ERROR, float(norms.mean()))


def choose(modules: Sequence[Sequence[LadderOption]], budget_bits: int) -> list[int]:
    """The option of each module: of the best sums to each power the one whose largest error is least; then what is left of
    the bits, one step of the ladder after the other."""
    solutions = [found for norm in NORMS if (found := _best(modules, budget_bits, norm)) is not None]
    if not solutions:
        raise ValueError(f"no choice of the ladder has at most {budget_bits} bits")

    def largest(chosen: Iterable[int]) -> tuple[float, float]:
        errors = [options[index].error for options, index in zip(modules, chosen, strict=True)]
        return max(errors), sum(errors)

    return _spent(modules, list(min(solutions, key=largest)), budget_bits)


def _best(modules: Sequence[Sequence[LadderOption]], budget_bits: int, norm: float) -> tuple[int, ...] | None:
    found = allocate([[Choice(one.bits, one.error**norm) for one in options] for options in modules], budget_bits)
    return None if found is None else found.chosen


def _spent(modules: Sequence[Sequence[LadderOption]], chosen: list[int], budget_bits: int) -> list[int]:
    left = budget_bits - sum(options[index].bits for options, index in zip(modules, chosen, strict=True))
    moved = True
    while moved:
        moved = False
        for module, options in enumerate(modules):
            at = chosen[module]
            if at + 1 < len(options) and options[at + 1].bits - options[at].bits <= left:
                left -= options[at + 1].bits - options[at].bits
                chosen[module], moved = at + 1, True
    return chosen
