"""Rotary embeddings: transformers' factors, and angles that are a position's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from shoal.model.families import model_config
from shoal.model.nn.rope import MAX_KNOWN, Rope, RopeConfig, frequencies
from tests.support.tiny_models import TINY_LLAMA

KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "large theta": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
    },
    "yarn of DeepSeek": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "yarn of gpt-oss": {
        "rope_type": "yarn",
        "rope_theta": 150_000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
        "attention_factor": 1.25,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
}
GRANTED = 8192


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", [10, 64, 128])
def test_angles_are_those_of_transformers(kind: str, head_dim: int) -> None:
    """Frequencies to the last bit or so, cosines and sines to fp32's rounding, also far out."""
    hf = LlamaConfig(**{**TINY_LLAMA, "head_dim": head_dim, "rope_parameters": dict(KINDS[kind])})
    config = model_config(hf.to_dict()).block.rope
    theirs = LlamaRotaryEmbedding(hf)
    torch.testing.assert_close(frequencies(config, head_dim), theirs.inv_freq, rtol=1e-6, atol=0)
    positions = torch.tensor([0, 1, 2, 63, 64, 1000, 8191])
    cos, sin = theirs(torch.zeros(1), positions[None])
    ours = Rope(config, head_dim).angles(positions, GRANTED)
    torch.testing.assert_close(ours[0], cos[0, :, : head_dim // 2], rtol=0, atol=1e-3)
    torch.testing.assert_close(ours[1], sin[0, :, : head_dim // 2], rtol=0, atol=1e-3)
    near = slice(0, 5)
    torch.testing.assert_close(ours[0][near], cos[0, near, : head_dim // 2], rtol=0, atol=1e-5)


def test_factors_divide_the_frequencies() -> None:
    """A GGUF file's own factors go before any formula."""
    plain = frequencies(RopeConfig(theta=500_000.0), 8)
    given_factors = frequencies(RopeConfig(theta=500_000.0, factors=(1.0, 2.0, 4.0, 8.0)), 8)
    assert torch.equal(given_factors, plain / torch.tensor([1.0, 2.0, 4.0, 8.0]))


@settings(deadline=None, max_examples=50)
@given(
    positions=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=100),
    head_dim=st.sampled_from([2, 10, 22, 64, 128]),
)
def test_a_positions_angle_is_its_own(positions: list[int], head_dim: int) -> None:
    """The same bits whatever other positions are asked for with it."""
    rope = Rope(RopeConfig(), head_dim)
    together = rope.angles(torch.tensor(positions))
    for index, position in enumerate(positions):
        alone = rope.angles(torch.tensor([position]))
        assert torch.equal(alone[0][0], together[0][index])
        assert torch.equal(alone[1][0], together[1][index])


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_factors_follow_the_grant_and_never_the_length(kind: str) -> None:
    """A position's angle depends on what the session was granted alone; up to the original length nothing is stretched."""
    factors = tuple(1.0 + index for index in range(8))
    config = RopeConfig(kind=kind, factor=4.0, original_max_positions=64, factors=(1.0,) * 8, long_factors=factors)
    config = config if kind == "longrope" else RopeConfig(kind=kind, factor=4.0, original_max_positions=64)
    rope, positions = Rope(config, 16), torch.arange(60)
    short, long = rope.angles(positions, 64), rope.angles(positions, 65)
    assert torch.equal(short[0], Rope(RopeConfig(), 16).angles(positions)[0])
    assert not torch.equal(short[0], long[0])
    for granted, expected in ((1, short), (64, short), (65, long)):
        for position in (0, 7, 59):
            one = rope.angles(positions[position : position + 1], granted)
            assert torch.equal(one[0][0], expected[0][position])
    for granted in range(1, 300):
        rope.angles(positions[:1], granted)
    assert len(rope._known) <= MAX_KNOWN, "what many sessions ask for is bounded"


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_a_slice_is_what_the_angles_are(kind: str) -> None:
    """The same bits, within a run of positions that is kept and across several, whatever was granted."""
    rope = Rope(RopeConfig(kind=kind, factor=2.0, original_max_positions=100), 20)
    for granted in (50, 400):
        for position, count in ((0, 1), (127, 2), (128, 1), (5, 300), (380, 20)):
            expected = rope.angles(torch.arange(position, position + count), granted)
            for mine, true in zip(rope.slice(position, count, granted), expected, strict=True):
                assert torch.equal(mine, true)
                assert mine.is_contiguous()
