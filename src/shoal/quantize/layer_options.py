"""From what each group of a layer would lose at each width to the layer's options: which groups to give more bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.quantize.allocation import Choice
from shoal.quantize.row_groups import WIDTHS, Groups, MatrixShape, RowGroup, cut, stored_bits

TRADES = 24
"""Prices of a bit that are tried between the one at which all groups are wide and the one at which all are narrow."""

GroupErrors = Sequence[Sequence[float]]
"""For each group in stored order the error at each of WIDTHS."""

Floats = npt.NDArray[np.float64]


class LayerOption(NamedTuple):
    """Groups of a layer, what they cost, and what they leave as the measurement foresees."""

    groups: Groups
    bits: int
    error: float

    @property
    def choice(self) -> Choice:
        """What the allocation looks at."""
        return Choice(self.bits, self.error)


def layer_options(shape: MatrixShape, errors: Mapping[int, GroupErrors]) -> list[LayerOption]:
    """The options of a layer whose group errors are known for some group sizes, none twice.

    For each size and price of a bit the widths that cost least in all: errors and bits together, widths never rising.
    """
    found: dict[Groups, LayerOption] = {}
    for size, table in errors.items():
        sizes = cut(shape.inputs, size)
        losses = np.array(table, np.float64)
        for widths in _width_choices(losses, np.array(sizes)):
            groups = tuple(RowGroup(WIDTHS[width], inputs) for width, inputs in zip(widths, sizes, strict=True))
            loss = float(losses[np.arange(len(sizes)), widths].sum())
            found.setdefault(groups, LayerOption(groups, stored_bits(groups, shape), loss))
    return list(found.values())


def _width_choices(losses: Floats, sizes: npt.NDArray[np.int64]) -> list[list[int]]:
    """Indexes of WIDTHS for each group: all of one width, and the best mix at each price."""
    flat = [[width] * len(sizes) for width in range(len(WIDTHS))]
    return [*flat, *(_best_widths(losses, sizes, price) for price in _prices(losses, sizes))]


def _prices(losses: Floats, sizes: npt.NDArray[np.int64]) -> Floats:
    """Errors that a bit of one input may cost, from the least to the most that any group's next width saves."""
    saved = np.diff(losses, axis=1) / (np.abs(np.diff(WIDTHS)) * sizes[:, None])
    useful = saved[saved > 0]
    return np.geomspace(useful.min(), useful.max(), TRADES) if useful.size else np.empty(0)


def _best_widths(losses: Floats, sizes: npt.NDArray[np.int64], price: float) -> list[int]:
    """The widths, never rising, with the least error and price together: group after group, by each last width."""
    costs = losses + price * sizes[:, None] * np.array(WIDTHS, np.float64)
    totals, origins = costs[0], list[npt.NDArray[np.int64]]()
    for cost in costs[1:]:
        least = np.minimum.accumulate(totals)
        origins.append(_first_minimum(totals))
        totals = least + cost
    widths = [int(totals.argmin())]
    for origin in reversed(origins):
        widths.append(int(origin[widths[-1]]))
    return widths[::-1]


def _first_minimum(totals: Floats) -> npt.NDArray[np.int64]:
    """For each place the first place up to it that has the least number so far."""
    least = np.minimum.accumulate(totals)
    places = np.where(np.concatenate(([True], totals[1:] < least[:-1])), np.arange(len(totals)), 0)
    return np.maximum.accumulate(places)
