"""The divergence that the bench of KV dtypes reports, and the text it reads."""

from __future__ import annotations

import math

import pytest
import torch

from bench.kv import Loss, _loss, _summary
from bench.prompt_text import prompts


class Letters:
    """A tokenizer of characters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_divergence_of_two_distributions() -> None:
    """By hand: nothing for equal ones, Σ p ln(p / q) else, and 1 for equal favourites."""
    expected = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    found = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    assert not _loss(expected, expected).kl.any()
    loss = _loss(expected, found)
    assert loss.kl.tolist() == pytest.approx([0.0, 0.25 * math.log(1 / 3) + 0.75 * math.log(3)])
    assert loss.same.tolist() == [1.0, 0.0]


def test_the_error_is_that_of_passages() -> None:
    """Tokens of one passage are not independent: the deviation of the passages' means ÷ √passages."""
    losses = [Loss(torch.full((4,), kl, dtype=torch.float64), torch.ones(4)) for kl in (1.0, 2.0, 3.0)]
    found = _summary(losses)
    assert found["kl_mean"] == 2.0
    assert found["kl_error"] == pytest.approx(3**-0.5)
    assert found["kl_p99"] == 3.0
    assert found["same_top_token"] == 1.0
    assert _summary(losses[:1])["kl_error"] == 0.0


def test_passages_follow_one_another() -> None:
    """So many of so many tokens, all different; a text that is too short is refused."""
    one, other = prompts(Letters(), 2, 1500)
    assert (len(one), len(other)) == (1500, 1500)
    assert one != other
    with pytest.raises(ValueError, match="more than"):
        prompts(Letters(), 10, 10**6)
