"""The second phase: which groups of which layer get how many bits, for one target."""

from __future__ import annotations

import msgspec

from shoal.errors import UsageError
from shoal.quantize.allocation import allocate
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.layer_options import LayerOption
from shoal.quantize.row_groups import Groups, float_bits, least_bits

HEAD_SHARES: dict[int, tuple[tuple[tuple[int, float], ...], dict[int, int]]] = {
    2: (((4, 0.3), (2, 0.7)), {4: 32, 2: 32}),
    3: (((4, 0.15), (3, 0.85)), {4: 32, 3: 32}),
    4: (((6, 0.15), (4, 0.85)), {6: 32, 4: 32}),
    5: (((6, 0.15), (5, 0.85)), {6: 128, 5: 128}),
    6: (((8, 0.15), (6, 0.85)), {8: 128, 6: 128}),
    8: (((8, 1.0),), {8: 128}),
}
"""By a head's bits its shares of widths, and their group sizes: those that ExLlama's readers know."""


class BitPlan(msgspec.Struct, frozen=True):
    """The groups of each layer by its key. `bits_per_weight` counts all that the layers of the blocks take in the file.

    `error` is what the measurement foresees, in nats; no plan has less than `bound`.
    """

    groups: dict[str, Groups]
    bits_per_weight: float
    error: float
    bound: float


def check_target(layers: list[QuantizedLayer], target: float) -> None:
    """Raises UsageError for a target below what these layers take at least, before anything is measured."""
    least = sum(least_bits(layer.shape) for layer in layers) / sum(layer.shape.weights for layer in layers)
    if target < least:
        raise UsageError(f"bits cannot be {target:g}: this model takes at least {least:.3f} per weight", "bits")


def plan_bits(layers: list[QuantizedLayer], options: list[list[LayerOption]], target: float) -> BitPlan:
    """The plan with the least error within `target` bits per weight of all `layers`.

    `options` are those of the layers that the format can hold; the others stay in fp16 and count with that. Raises UsageError
    where no option of some layer is cheap enough.
    """
    weights = sum(layer.shape.weights for layer in layers)
    held = [layer for layer in layers if layer.shape.quantizable]
    fixed = sum(float_bits(layer.shape) for layer in layers if not layer.shape.quantizable)
    found = allocate([[option.choice for option in some] for some in options], int(target * weights) - fixed)
    if found is None:
        raise UsageError(f"bits cannot be {target:g}: what was measured takes more", "bits")
    chosen = [some[index].groups for some, index in zip(options, found.chosen, strict=True)]
    groups = {layer.key: one for layer, one in zip(held, chosen, strict=True)}
    return BitPlan(groups, (fixed + found.bits) / weights, found.error, found.bound)
