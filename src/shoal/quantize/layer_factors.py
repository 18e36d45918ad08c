"""From what calibration saw of a layer's inputs to the factor that its weights are rounded under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from shoal.quantize.block_forward import Statistics
from shoal.quantize.block_layers import QuantizedLayer
from shoal.quantize.hessian import InputStatistics, InverseFactor, factored, to_nearest, without_feedback
from shoal.quantize.rounding import RoundingRule

RARE_SHARE = 0.01
"""An expert that calibration hardly visits counts as if that share of all tokens went there too, like those that other experts
of the block saw."""


def factors(
    layers: Sequence[QuantizedLayer], statistics: Statistics, tokens: int, rule: RoundingRule = RoundingRule()
) -> Iterator[tuple[QuantizedLayer, InverseFactor]]:
    """Layers with their factors; those that share their inputs share one, which is made once.

    Errors under them are those of a layer's outputs for one token on average. An expert that saw fewer tokens than it has
    inputs is rounded to nearest: what so few tokens say of its inputs does not hold for others.
    """
    usual = _usual_squares(layers, statistics)
    factor, last = None, None
    for layer in layers:
        seen = statistics[layer.role]
        if factor is None or seen is not last:
            factor, last = _factor(layer, seen, tokens, usual[layer.kind], rule), seen
        yield layer, factor


def _factor(
    layer: QuantizedLayer, seen: InputStatistics, tokens: int, usual: Tensor, rule: RoundingRule
) -> InverseFactor:
    hessian = seen.products / tokens
    if layer.kind != layer.role and seen.rows < layer.shape.inputs:
        return to_nearest(hessian.diagonal() + RARE_SHARE * usual)
    return factored(hessian, rule.damping) if rule.feedback else without_feedback(hessian, rule.damping)


def _usual_squares(layers: Sequence[QuantizedLayer], statistics: Statistics) -> Mapping[str, Tensor]:
    """By kind of layer the mean square of each input over all rows that the kind's layers saw."""
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    for layer in layers:
        seen = statistics[layer.role]
        sums[layer.kind] = sums.get(layer.kind, 0.0) + seen.products.diagonal()
        rows[layer.kind] = rows.get(layer.kind, 0) + seen.rows
    return {kind: total / max(1, rows[kind]) for kind, total in sums.items()}


def ordered(weight: Tensor, factor: InverseFactor) -> Tensor:
    """A weight [outputs, inputs] as [inputs, outputs] in fp32, in stored order."""
    return weight.float().T[factor.order].contiguous()
