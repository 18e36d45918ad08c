"""The divergence that the bench of KV dtypes reports, and the text it reads."""

from __future__ import annotations

import math

import pytest
import torch

from bench.kv import _divergence
from bench.prompt_text import prompts


class Letters:
    """A tokenizer of characters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_divergence_of_two_distributions() -> None:
    """By hand: nothing for equal ones, Σ p ln(p / q) else, the mean over tokens, and the share of equal favourites."""
    expected = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    found = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    assert _divergence(expected, expected) == {"kl_mean": 0.0, "kl_p99": 0.0, "same_top_token": 1.0}
    result = _divergence(expected, found)
    assert result["kl_mean"] == pytest.approx((0.25 * math.log(1 / 3) + 0.75 * math.log(3)) / 2)
    assert result["same_top_token"] == 0.5


def test_passages_follow_one_another() -> None:
    """So many of so many tokens, all different; a text that is too short is refused."""
    one, other = prompts(Letters(), 2, 1500)
    assert (len(one), len(other)) == (1500, 1500)
    assert one != other
    with pytest.raises(ValueError, match="more than"):
        prompts(Letters(), 10, 10**6)
