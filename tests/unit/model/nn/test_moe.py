"""Mixtures: who is chosen, in what order they are added, and what no expert sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.engine.proof import numbers
from shoal.model.kernels.linears import RowLinear
from shoal.model.nn.layers import GatedMlp
from shoal.model.nn.moe import Experts, MoeConfig

HIDDEN, INNER, COUNT = 12, 64, 6


def expert(seed: int) -> GatedMlp:
    """A small one."""
    gate_up, down = RowLinear(numbers(seed, 2 * INNER, HIDDEN)), RowLinear(numbers(seed + 1, HIDDEN, INNER))
    return GatedMlp(gate_up, down, "silu")


def mixture(router: Tensor, bias: Tensor | None = None, **fields: object) -> Experts:
    """Experts behind a router of these weights."""
    config = MoeConfig(**{"num_experts": COUNT, "experts_per_token": 2, "intermediate_size": INNER, **fields})
    return Experts(config, RowLinear(router), [expert(10 * index) for index in range(COUNT)], None, bias)


def chosen(experts: Experts, rows: Tensor) -> list[list[int]]:
    """Each row's experts."""
    return [row.nonzero().flatten().tolist() for row in experts._route(rows)[1]]


@pytest.mark.parametrize("scores", ["softmax", "softmax_of_chosen", "sigmoid"])
def test_ties_go_to_the_lower_expert(scores: str) -> None:
    """All equal: the first ones; two equal at the border: the first of them."""
    assert chosen(mixture(torch.zeros(COUNT, HIDDEN), scores=scores), numbers(1, 4, HIDDEN)) == [[0, 1]] * 4
    router = torch.zeros(COUNT, HIDDEN)
    router[:, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0, 2.0, 2.0])
    assert chosen(mixture(router, scores=scores), torch.ones(4, HIDDEN)) == [[2, 3]] * 4


def test_groups_come_before_experts() -> None:
    """The best expert does not count when its group is not among the best; a bias counts for choosing only."""
    router = torch.zeros(COUNT, HIDDEN)
    router[:, 0] = torch.tensor([9.0, -9.0, 2.0, 2.5, 1.0, 1.5])
    grouped = {"num_groups": 3, "groups_per_token": 1}
    assert chosen(mixture(router, **grouped), torch.ones(4, HIDDEN)) == [[0, 1]] * 4, "by the best expert"
    best_two = mixture(router, torch.zeros(COUNT), scores="sigmoid", correction=True, **grouped)
    assert chosen(best_two, torch.ones(4, HIDDEN)) == [[2, 3]] * 4, "by the best two"
    biased = mixture(router, torch.tensor([0.0, 0, 0, 0, 9, 9]), scores="sigmoid", correction=True, **grouped)
    weights, _ = biased._route(torch.ones(4, HIDDEN))
    assert chosen(biased, torch.ones(4, HIDDEN)) == [[4, 5]] * 4
    torch.testing.assert_close(weights[0, 4:], torch.sigmoid(torch.tensor([1.0, 1.5])))


def test_weights_are_shares_where_the_configuration_says_so() -> None:
    """Of all experts, or of the chosen ones by dividing or by a softmax of their own, times a scale."""
    rows, router = numbers(2, 8, HIDDEN), 3 * numbers(3, COUNT, HIDDEN)
    plain = mixture(router)._route(rows)[0].sum(-1)
    assert bool((plain < 1).all())
    for fields in ({"normalized": True}, {"scores": "softmax_of_chosen"}):
        torch.testing.assert_close(mixture(router, **fields)._route(rows)[0].sum(-1), torch.ones(8))
    torch.testing.assert_close(mixture(router, scale=2.5)._route(rows)[0].sum(-1), 2.5 * plain)


def test_experts_are_added_in_ascending_order() -> None:
    """Bit for bit the sum that starts at zero and takes each row's experts by number, whatever their weights."""
    rows, experts = numbers(4, 8, HIDDEN), mixture(3 * numbers(5, COUNT, HIDDEN), experts_per_token=4)
    weights, used = experts._route(rows)
    together = experts(rows, 4, 8)
    for row in range(8):
        total = torch.zeros(1, together.shape[1])
        for index in used[row].nonzero().flatten().tolist():
            padded = torch.cat([rows[row : row + 1], torch.zeros(3, HIDDEN)])
            total = total + experts.experts[index](padded)[:1] * weights[row, index]
        assert torch.equal(together[row], total[0])


def test_rows_that_fill_up_a_tile_reach_no_expert() -> None:
    """Otherwise one row would cost the experts of four."""
    experts, seen = mixture(3 * numbers(6, COUNT, HIDDEN)), 0

    def counting(inner: GatedMlp) -> object:
        def call(rows: Tensor) -> Tensor:
            nonlocal seen
            seen += 1
            return inner(rows)

        return call

    experts.experts = [counting(one) for one in experts.experts]  # type: ignore[misc]
    rows = torch.cat([numbers(7, 1, HIDDEN), -numbers(8, 3, HIDDEN)])
    result = experts(rows, 4, 1)
    assert seen == 2
    assert not result[1:].any()
