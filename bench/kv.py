"""`python -m bench kv`: what a smaller KV cache costs the model's predictions, in nats, and what it saves."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from bench.prompt_text import prompts
from bench.report import commit, hardware
from shoal.engine.blocks import TorchBlocks
from shoal.engine.proof import prove
from shoal.engine.runner import Runner
from shoal.kv.cache import KVCache
from shoal.kv.cache_storage import KV_DTYPES, page_bytes
from shoal.kv.pages import PAGE_TOKENS, pages_for
from shoal.model.families import model_config
from shoal.model.nn.block import Block, EmbeddingAndHead, ModelConfig
from shoal.model.weights.block_loading import load_blocks, load_ends
from shoal.model.weights.model_source import demo_model_path, open_checkpoint
from shoal.model.weights.tokenizer import load_tokenizer
from shoal.protocol.rows import Rows
from shoal.types import Span

CHUNK = 128


def run(tokens: int) -> dict[str, Any]:
    """KL divergence of each dtype's next-token distributions from those of an fp32 cache, over a text of `tokens` tokens."""
    checkpoint = open_checkpoint(str(demo_model_path()))
    config = model_config(checkpoint.config)
    (token_ids,) = prompts(load_tokenizer(checkpoint), 1, tokens)
    with torch.inference_mode():
        blocks: list[Block] = load_blocks(checkpoint, config, Span(0, config.num_blocks))
        ends = load_ends(checkpoint, config)
        tile = prove(blocks, config).tile
        results: dict[str, dict[str, float]] = {}
        expected: Tensor | None = None
        for dtype in KV_DTYPES:
            print(f"a text of {tokens} tokens with a cache of {dtype}", file=sys.stderr, flush=True)
            found = _predictions(config, blocks, ends, tile, token_ids, dtype)
            expected = found if expected is None else expected
            results[dtype] = {**_divergence(expected, found), "bytes_per_token": _token_bytes(config, dtype)}
    return {
        "name": "kv",
        "model": checkpoint.name,
        "tokens": tokens,
        "dtypes": results,
        "unit": "nats per token from an fp32 cache",
        "hardware": hardware(),
        "commit": commit(),
    }


def _predictions(
    config: ModelConfig, blocks: list[Block], ends: EmbeddingAndHead, tile: int, token_ids: list[int], dtype: str
) -> Tensor:
    """Log-probabilities [n, vocab] of what follows each token."""
    span = Span(0, len(blocks))
    cache = KVCache(config.block.cache_shape, len(blocks) * pages_for(len(token_ids)), dtype)
    runner = Runner(span, TorchBlocks(config.block, 0, blocks, cache, tile), cache)
    runner.open("text", span, len(token_ids))
    embedded = torch.split(ends.embed(token_ids), CHUNK)
    outputs = [runner.step([Rows("text", CHUNK * index, rows)])[0] for index, rows in enumerate(embedded)]
    return torch.log_softmax(ends.logits(torch.cat(outputs), tile), -1)


def _divergence(expected: Tensor, found: Tensor) -> dict[str, float]:
    """Mean and 99th percentile over tokens of KL(expected ‖ found), and how often both have the same favourite."""
    kl = (expected.exp() * (expected - found)).to(torch.float64).sum(-1)
    same = (expected.argmax(-1) == found.argmax(-1)).to(torch.float64).mean()
    return {"kl_mean": float(kl.mean()), "kl_p99": float(kl.quantile(0.99)), "same_top_token": float(same)}


def _token_bytes(config: ModelConfig, dtype: str) -> float:
    return config.num_blocks * page_bytes(config.block.cache_shape, dtype) / PAGE_TOKENS
