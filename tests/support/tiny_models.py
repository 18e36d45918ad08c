"""Tiny random checkpoints, for tests and examples: real files, seeded weights, seconds to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.engine.blocks import TorchBlocks
from shoal.engine.proof import TILES, block_holds
from shoal.engine.runner import Runner
from shoal.kv.cache import KVCache
from shoal.kv.prefix import PrefixCache
from shoal.model.families import TensorSource, family
from shoal.model.nn.block import Block, BlockConfig, ModelConfig, StoredTensors
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.nn.rope import RopeConfig
from shoal.types import Span

SMOLLM2 = BlockConfig(
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    norm_eps=1e-5,
    rope=RopeConfig(theta=100_000.0),
)
"""The shape of SmolLM2-135M's blocks."""

PLAIN = StoredTensors()

TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def tiny_llama(directory: Path | str, *, seed: int = 0, scale: float = 0.15, **overrides: Any) -> Path:
    """Save a random Llama checkpoint (config.json, model.safetensors, fp32) and return its directory.

    `overrides` go to transformers' LlamaConfig. The weights are normal with deviation `scale`, biases and norms included, so
    that nothing is zero or one by chance of initialisation.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{**TINY_LLAMA, **overrides})).to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, scale, generator=generator)
    model.save_pretrained(str(directory))
    return Path(directory)


def torch_runner(
    config: BlockConfig,
    span: Span,
    blocks: list[Block],
    cache: KVCache,
    tile: int,
    prefixes: PrefixCache | None = None,
) -> Runner:
    """A runner of plain torch blocks."""
    return Runner(span, TorchBlocks(config, span.start, blocks, cache, tile), cache, prefixes)


def fill_with_garbage(cache: KVCache) -> None:
    """What a cache may hold where nobody has written yet: NaN, or codes that mean something."""
    for tensor in cache.storage.tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 0x5B)


def random_blocks(
    config: BlockConfig,
    num_blocks: int,
    seed: int = 0,
    scale: float = 0.1,
    model_type: str = "llama",
    stored: StoredTensors = PLAIN,
) -> list[Block]:
    """Blocks of a family with seeded normal weights in fp32, without any file."""
    return [Block(config, each) for each in random_parameters(config, num_blocks, seed, scale, model_type, stored)]


def random_parameters(
    config: BlockConfig,
    num_blocks: int,
    seed: int = 0,
    scale: float = 0.1,
    model_type: str = "llama",
    stored: StoredTensors = PLAIN,
) -> list[BlockWeights]:
    """Their weights; `stored` says which of the family's tensors there are."""
    model = ModelConfig(model_type, num_blocks, 1, 512, (), True, config, stored=stored)
    generator = torch.Generator().manual_seed(seed)

    def weights(index: int) -> dict[str, torch.Tensor]:
        shapes = family(model_type).block_tensors(model, index)
        return {role: _drawn(role, source, scale, generator) for role, source in shapes.items()}

    return [BlockWeights.of(weights(index)) for index in range(num_blocks)]


def _drawn(role: str, source: TensorSource, scale: float, generator: torch.Generator) -> torch.Tensor:
    drawn = scale * torch.randn(source.shape, generator=generator)
    if source.take is not None:
        return source.take(drawn)
    return drawn + 1.0 if "norm" in role else drawn


def shared_tile(block: Block, threads: Sequence[int]) -> int | None:
    """The smallest tile that keeps rows exact with each of these thread counts; None where this machine's BLAS has none."""
    before = torch.get_num_threads()
    try:
        with torch.inference_mode():
            span_info = (tile for tile in TILES if all(block_holds(block, tile, count) for count in threads))
            return next(span_info, None)
    finally:
        torch.set_num_threads(before)


def tiny_tokenizer(directory: Path | str, vocab_size: int = 131) -> Path:
    """Save a tokenizer of single bytes (`vocab_size` at most 258: two special tokens, then bytes) and return its directory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<s>", "</s>", *letters][:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<s>")
    fast.save_pretrained(str(directory))
    return Path(directory)
