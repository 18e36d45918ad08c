"""The Llama family against transformers, on tiny random checkpoints."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from shoal.engine.proof import prove
from shoal.engine.runner import Rows, Runner
from shoal.kv.cache import KVCache
from shoal.nn.block import Block, Ends, ModelConfig
from shoal.nn.families import model_config
from shoal.testing.tiny import tiny_llama, torch_runner
from shoal.types import Span
from shoal.weights.loading import load_blocks, load_ends
from shoal.weights.source import open_checkpoint

CASES: dict[str, dict[str, Any]] = {
    "grouped, tied": {},
    "one key head, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "all key heads, wide heads": {"num_key_value_heads": 4, "head_dim": 34},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "heads by division": {"head_dim": None, "hidden_size": 40},
    "odd widths": {
        "hidden_size": 90,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 10,
        "intermediate_size": 33,
    },
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
    "llama 3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 500_000.0,
        }
    },
    "gelu": {"hidden_act": "gelu_pytorch_tanh"},
}
PROMPT_TOKENS = 150
GREEDY_TOKENS = 128


class Loaded(NamedTuple):
    """The same checkpoint in both systems."""

    config: ModelConfig
    blocks: list[Block]
    ends: Ends
    tile: int
    reference: PreTrainedModel

    def runner(self, span: Span, dtype: str = "float32") -> Runner:
        """A runner over a part of the model with an empty cache."""
        blocks = self.blocks[span.start : span.stop]
        return torch_runner(
            self.config.block, span, blocks, KVCache(self.config.block, 5 * len(span), dtype), self.tile
        )


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Every case, written and read as files."""
    directory = tiny_llama(tmp_path_factory.mktemp("tiny"), **CASES[request.param])
    return load(directory)


def load(directory: Path) -> Loaded:
    """A checkpoint, loaded by both."""
    checkpoint = open_checkpoint(str(directory))
    config = model_config(checkpoint.config)
    blocks = load_blocks(checkpoint, config, Span(0, config.num_blocks))
    reference = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    return Loaded(config, blocks, load_ends(checkpoint, config), prove(blocks[0], config.block).tile, reference)


def prompt(vocab_size: int) -> list[int]:
    """Token ids that are not periodic."""
    return [(7 * index * index + 3 * index + 5) % vocab_size for index in range(PROMPT_TOKENS)]


def through(runners: list[Runner], rows: Tensor, position: int) -> Tensor:
    """Rows through the parts of a model, one after the other."""
    for runner in runners:
        rows = runner.step([Rows("one", position, runner.span, rows)])[0]
    return rows


def opened(loaded: Loaded, cuts: tuple[int, ...] = ()) -> list[Runner]:
    """The model in parts, cut at these blocks, with a session open in each."""
    edges = (0, *cuts, loaded.config.num_blocks)
    runners = [loaded.runner(Span(*edge)) for edge in itertools.pairwise(edges)]
    for runner in runners:
        runner.open("one", runner.span, 300)
    return runners


def greedy(loaded: Loaded, runners: list[Runner], count: int) -> tuple[list[int], list[Tensor]]:
    """The most likely continuation of the prompt, and the hidden states on the way."""
    ids = prompt(loaded.config.vocab_size)
    rows, position, tokens = through(runners, loaded.ends.embed(ids), 0), len(ids), []
    states = [rows]
    for _ in range(count):
        tokens.append(int(loaded.ends.logits(states[-1][-1:], loaded.tile).argmax()))
        states.append(through(runners, loaded.ends.embed(tokens[-1:]), position))
        position += 1
    return tokens, states


def test_logits_are_those_of_transformers(loaded: Loaded) -> None:
    """Every position of a prompt over several pages, within 1e-4."""
    ids = prompt(loaded.config.vocab_size)
    states = through(opened(loaded), loaded.ends.embed(ids), 0)
    with torch.no_grad():
        expected = loaded.reference(torch.tensor([ids])).logits[0]
    assert expected.std() > 0.1, "the checkpoint says something"
    torch.testing.assert_close(loaded.ends.logits(states, loaded.tile), expected, rtol=0, atol=1e-4)


def test_greedy_tokens_are_those_of_transformers(loaded: Loaded) -> None:
    """128 tokens, one by one, after a prompt."""
    ids = prompt(loaded.config.vocab_size)
    tokens, _ = greedy(loaded, opened(loaded), GREEDY_TOKENS)
    with torch.no_grad():
        generated = loaded.reference.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=GREEDY_TOKENS,
            min_new_tokens=GREEDY_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert tokens == generated[0, len(ids) :].tolist()


def test_a_split_at_any_block_gives_the_same_bits(loaded: Loaded) -> None:
    """One runner, two at either boundary, or three: prefill and decode are bit for bit the same."""
    tokens, states = greedy(loaded, opened(loaded), 8)
    for cuts in ((1,), (2,), (1, 2)):
        split_tokens, split_states = greedy(loaded, opened(loaded, cuts), 8)
        assert split_tokens == tokens
        assert all(torch.equal(one, other) for one, other in zip(states, split_states, strict=True))


def test_logits_of_a_row_do_not_depend_on_company(loaded: Loaded) -> None:
    """The head is row-exact as well."""
    rows = through(opened(loaded), loaded.ends.embed(prompt(loaded.config.vocab_size)), 0)
    together = loaded.ends.logits(rows, loaded.tile)
    for first, count in ((0, 1), (3, 2), (50, 7), (149, 1)):
        alone = loaded.ends.logits(rows[first : first + count], loaded.tile)
        assert torch.equal(alone, together[first : first + count])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_dtypes_are_the_rounded_model(tmp_path: Path, dtype: str) -> None:
    """Weights stored in 16 bits compute what transformers computes in fp32 with the rounded weights."""
    directory = tiny_llama(tmp_path, tie_word_embeddings=False)
    checkpoint = open_checkpoint(str(directory))
    config = model_config(checkpoint.config)
    blocks = load_blocks(checkpoint, config, Span(0, 3), dtype)
    assert {linear.weight.dtype for block in blocks for linear in block.linears()} == {getattr(torch, dtype)}
    reference = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in reference.parameters():
            if weight.ndim == 2:
                weight.copy_(weight.to(getattr(torch, dtype)).to(torch.float32))
        loaded = Loaded(config, blocks, load_ends(checkpoint, config, dtype), 4, reference)
        ids = prompt(config.vocab_size)
        states = through(opened(loaded), loaded.ends.embed(ids), 0)
        expected = reference(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(loaded.ends.logits(states, 4), expected, rtol=0, atol=1e-4)
