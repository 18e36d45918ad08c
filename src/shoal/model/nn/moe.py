"""Mixtures of experts, row-exact: ties to the lower expert, experts summed in ascending order, each with rows of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import torch
from torch import Tensor

from shoal.model.kernels.linears import Linear
from shoal.model.kernels.tiles import exp_, pad_rows, padded, row_sum, sigmoid_
from shoal.model.nn.layers import GatedMlp

SCORES = ("softmax", "softmax_of_chosen", "sigmoid")


class MoeConfig(msgspec.Struct, frozen=True):
    """How a router chooses among experts and what it makes of their outputs."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    scores: str = "softmax"
    """One of SCORES: over all experts, over the chosen ones alone (gpt-oss), or each on its own (DeepSeek V3)."""

    normalized: bool = False
    """Whether the chosen experts' scores are divided by their sum."""

    scale: float = 1.0
    """What the scores are multiplied by at the end."""

    correction: bool = False
    """Whether a bias per expert is added for choosing only (DeepSeek V3)."""

    num_groups: int = 1
    groups_per_token: int = 1
    """Experts are chosen from this many of the groups: those with the best expert, or, with `correction`, the best two."""

    shared_size: int = 0
    """Inner width of an expert that every row goes through as well; 0: none."""


class Experts:
    """A mixture in an MLP's place. `experts` are in the order of the router's outputs."""

    def __init__(
        self,
        config: MoeConfig,
        router: Linear,
        experts: Sequence[GatedMlp],
        shared: GatedMlp | None = None,
        correction: Tensor | None = None,
    ) -> None:
        self.config = config
        self.router = router
        self.experts = experts
        self.shared = shared
        self.correction = correction

    def __call__(self, rows: Tensor, tile: int, count: int) -> Tensor:
        """Mlp: rows beyond `count` only fill up a tile, and no expert sees them."""
        weights, chosen = self._route(rows)
        result = torch.zeros(rows.shape[0], padded(rows.shape[1]), device=rows.device)
        for expert in chosen[:count].any(0).nonzero().flatten().tolist():
            at = chosen[:count, expert].nonzero().flatten()
            output = self.experts[expert](pad_rows(rows[at], tile))[: at.numel()]
            result[at] = result[at] + output * weights[at, expert, None]
        return result if self.shared is None else result + self.shared(rows)

    def _route(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [n, experts] in fp32 and which are chosen, the same in bool."""
        config = self.config
        logits = self.router(rows)[:, : config.num_experts]
        if config.scores == "softmax_of_chosen":
            chosen = _best(logits, config.experts_per_token)
            return _softmax(torch.where(chosen, logits, float("-inf"))), chosen
        scores = _softmax(logits) if config.scores == "softmax" else _sigmoid(logits)
        ranked = scores if self.correction is None else scores + self.correction
        chosen = _best(self._within_groups(ranked), config.experts_per_token)
        weights = torch.where(chosen, scores, 0.0)
        if config.normalized:
            weights = weights / row_sum(weights)
        return weights * config.scale, chosen

    def _within_groups(self, ranked: Tensor) -> Tensor:
        """Scores [n, experts] with −∞ outside the groups that a row may choose from."""
        config = self.config
        if config.num_groups == 1:
            return ranked
        groups = ranked.view(ranked.shape[0], config.num_groups, -1)
        best = groups.sort(dim=-1, descending=True, stable=True).values
        merit = best[..., 0] if self.correction is None else best[..., 0] + best[..., 1]
        allowed = _best(merit, config.groups_per_token)
        return torch.where(allowed[..., None], groups, float("-inf")).view_as(ranked)

    def linears(self) -> Iterator[Linear]:
        """Mlp: the router's and the experts' matrices."""
        yield self.router
        for expert in (*self.experts, *([] if self.shared is None else [self.shared])):
            yield from expert.linears()


def _best(scores: Tensor, count: int) -> Tensor:
    """Which of the scores [n, experts] are a row's `count` highest; of equal ones the first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def _softmax(logits: Tensor) -> Tensor:
    """Along the last dimension, where −∞ is a weight of exactly 0."""
    missing = -logits.shape[-1] % 64
    wide = torch.nn.functional.pad(logits - logits.amax(-1, keepdim=True), (0, missing), value=float("-inf"))
    weights = exp_(wide.contiguous())
    return (weights / row_sum(weights))[:, : logits.shape[-1]]


def _sigmoid(logits: Tensor) -> Tensor:
    wide = torch.nn.functional.pad(logits, (0, -logits.shape[-1] % 64)).contiguous()
    return sigmoid_(wide)[:, : logits.shape[-1]]
