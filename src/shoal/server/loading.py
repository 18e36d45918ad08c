"""From a model's name to blocks that are ready to run, within the memory that the owner gave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from shoal.engine.proof import prove
from shoal.engine.runner import Runner
from shoal.errors import CapacityError
from shoal.kv.cache import KVCache, page_bytes
from shoal.nn.attention import PAGE_TOKENS
from shoal.nn.block import ModelConfig
from shoal.nn.families import model_config
from shoal.server.config import JOURNAL_SHARE, ServerConfig, default_memory_bytes
from shoal.server.service import Holding
from shoal.swarm.placement import choose_span
from shoal.swarm.records import ServerRecord
from shoal.types import ModelSpec, Span
from shoal.weights.checkpoint import Checkpoint, fingerprint
from shoal.weights.loading import block_digests, load_blocks
from shoal.weights.source import open_checkpoint
from shoal.wire.messages import Numerics

Progress = Callable[[str, int, int], None]

DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}

WEIGHT_SHARE = 0.8
"""The share of the memory that weights may take when the server chooses how many blocks it holds."""


class LoadedBlocks(NamedTuple):
    """A span that is ready to serve."""

    runner: Runner
    holding: Holding
    bits_per_weight: float


def load(config: ServerConfig, held: Iterable[ServerRecord], progress: Progress) -> LoadedBlocks:
    """Open the checkpoint, choose the span, load it, prove its arithmetic and make the cache. Blocks; run in a thread.

    `held` are the records that the swarm has already. Raises what is wrong with the model, CapacityError when the memory is
    too small for one block and a cache.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    progress("opening the checkpoint", 0, 0)
    checkpoint = open_checkpoint(config.model, config.revision)
    model = model_config(checkpoint.config)
    memory_bytes = config.memory_bytes or default_memory_bytes()
    span = _choose(config, model, memory_bytes, list(held))
    blocks = load_blocks(
        checkpoint,
        model,
        span,
        config.dtype,
        device=config.device,
        progress=lambda done, total: progress("loading blocks", done, total),
    )
    progress("proving the arithmetic", 0, 0)
    proof = prove(blocks[0], model.block, config.device)
    cache_pages, journal_tokens = _budget(config, model, memory_bytes - sum(block.size_bytes for block in blocks))
    cache = KVCache(model.block, cache_pages, device=config.device)
    runner = Runner(model.block, span, blocks, cache, proof.tile)
    numerics = Numerics(proof.kernel, proof.probe, cache.dtype, exact=proof.exact)
    holding = Holding(
        ModelSpec(checkpoint.name, fingerprint(checkpoint), model.num_blocks, model.block.hidden_size),
        span,
        numerics,
        block_digests(blocks),
        _public_source(checkpoint),
        checkpoint.revision,
        json.dumps(dict(checkpoint.config)).encode(),
        min(config.max_session_tokens, model.max_positions),
        journal_tokens,
    )
    return LoadedBlocks(runner, holding, float(DTYPE_BITS[config.dtype]))


def model_fingerprint(config: ServerConfig) -> str:
    """The fingerprint of the checkpoint that this server will load. Blocks; raises what is wrong with the model."""
    return fingerprint(open_checkpoint(config.model, config.revision))


def _choose(config: ServerConfig, model: ModelConfig, memory_bytes: int, held: list[ServerRecord]) -> Span:
    """The blocks that the owner named, or the least served ones: as many as were asked for or as fit."""
    if config.blocks is not None:
        return config.blocks.check(model.num_blocks)
    count = config.num_blocks
    if count is None:
        count = min(model.num_blocks, int(memory_bytes * WEIGHT_SHARE) // block_bytes(model, config.dtype))
        if count < 1:
            needed = block_bytes(model, config.dtype) / WEIGHT_SHARE
            raise CapacityError(f"{memory_bytes >> 20} MB are too little: one block needs {int(needed) >> 20} MB")
    same = [record for record in held if record.model.num_blocks == model.num_blocks]
    return choose_span(model.num_blocks, count, same, fewest=config.num_blocks or 1)


def block_bytes(model: ModelConfig, dtype: str) -> int:
    """Memory of one block's matrices."""
    block = model.block
    attention = block.hidden_size * block.head_dim * 2 * (block.num_heads + block.num_kv_heads)
    elements = attention + 3 * block.hidden_size * block.intermediate_size
    return elements * DTYPE_BITS[dtype] // 8


def _budget(config: ServerConfig, model: ModelConfig, left_bytes: int) -> tuple[int, int]:
    """Pages of the cache, and journal tokens per session, from what the weights leave.

    Raises CapacityError when that is not enough for one page per block.
    """
    journal_bytes = int(left_bytes * JOURNAL_SHARE)
    token_bytes = 4 * model.block.hidden_size
    journal_tokens = max(0, journal_bytes) // config.max_sessions // token_bytes
    useful = model.num_blocks * -(-config.max_session_tokens // PAGE_TOKENS) * config.max_sessions
    pages = min((left_bytes - journal_bytes) // page_bytes(model.block), useful)
    if pages < model.num_blocks:
        raise CapacityError(f"the weights leave {max(0, left_bytes) >> 20} MB: too little for a cache (raise --memory)")
    return pages, journal_tokens


def _public_source(checkpoint: Checkpoint) -> str:
    """What others may be told of where the model came from: a hub id, or a file's name without its folder."""
    return Path(checkpoint.source).name if os.path.exists(checkpoint.source) else checkpoint.source
