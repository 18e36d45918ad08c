"""From a model's name to blocks that are ready to run, within the memory that the owner gave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from shoal.engine.backends import Backend, choose_backend
from shoal.engine.batch_queue import MAX_QUEUED_ROWS
from shoal.engine.device import check_device, device_backend, device_memory, device_memory_bytes
from shoal.engine.proof import Proof
from shoal.engine.runner import Runner
from shoal.errors import CapacityError, UsageError
from shoal.kv.cache import KVCache
from shoal.kv.cache_storage import page_bytes, read_dtype
from shoal.kv.pages import PAGE_TOKENS
from shoal.kv.prefix import PrefixCache, output_page_bytes
from shoal.memory import trim_memory
from shoal.model.families import family, model_config
from shoal.model.kernels import cpu
from shoal.model.kernels.quantized import BITS
from shoal.model.nn.block import ModelConfig
from shoal.model.nn.rope import cache_positions
from shoal.model.weights.base_model import differences
from shoal.model.weights.block_loading import (
    AUTO,
    WeightFormat,
    block_digests,
    fetch_blocks,
    load_blocks,
    weight_format,
)
from shoal.model.weights.checkpoint import Checkpoint, fingerprint, model_spec
from shoal.model.weights.model_source import open_checkpoint
from shoal.model.weights.weight_bits import block_bytes, known_kl, num_weights, span_bits
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import MAX_ROWS, Numerics
from shoal.server.hosting.memory_plan import LEAST_BITS, Width, plan_memory
from shoal.server.serve_options import BUFFER_SHARE, JOURNAL_SHARE, PREFIX_SHARE, ServeOptions, default_memory_bytes
from shoal.server.sessions.hop_session import MAX_BACKLOG_ROWS
from shoal.server.sessions.session_service import SpanInfo
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.placement.local_search import choose_span
from shoal.swarm.placement.swarm_load import SwarmLoad, server_loads
from shoal.types import ModelSpec, Span

Progress = Callable[[str, int, int], None]

LEAST_BACKLOG_ROWS = 64
"""Rows of a session that may wait in any case: a chunk of a prompt."""

FRAMES_HELD = 3
"""How often the rows of a frame are in memory: as it is received, as bytes that were cut out of it, as numbers."""

MAX_DIFFERENCES = 3
"""Fields that an error names in which a checkpoint differs from its base."""

WEIGHT_SHARE = 0.8
"""The share of the memory that weights may take when the server chooses how many blocks it holds."""


class Source(NamedTuple):
    """A checkpoint that blocks can be loaded from, and the model that it holds: the base's where it was made from one.

    `described`: the checkpoint that clients are told of.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    model: ModelSpec
    described: Checkpoint


class LoadedBlocks(NamedTuple):
    """A span that is ready to serve, and what its server says of the weights."""

    runner: Runner
    span_info: SpanInfo
    bits_per_weight: float
    kl_nats: float | None = None


def open_source(config: ServeOptions) -> Source:
    """The checkpoint of the model that this server is to hold. Blocks; raises what is wrong with it, or with the device.

    Raises UsageError where it cannot have been made from the base that was named.
    """
    check_device(config.device)
    checkpoint = open_checkpoint(config.model, config.revision)
    weight_format(
        config.dtype, config.quantize, checkpoint
    )  # a width without kernels is told before anything is loaded
    model = model_config(checkpoint.config)
    if config.base is None:
        return Source(checkpoint, model, model_spec(checkpoint, model), checkpoint)
    base = open_checkpoint(config.base)
    described = model_config(base.config)
    spec = model_spec(base, described)
    _check_base(checkpoint, spec, differences(model, described))
    return Source(checkpoint, model, spec, base)


def told_of_base(source: Source) -> str:
    """What the owner should know of the swarm in which a checkpoint serves that is not its own; empty where it is."""
    made, base = source.checkpoint, source.model.fingerprint
    if source.described is not made:
        return f"{made.name} serves as {source.model.name} ({base[:8]})"
    return (
        f"{made.name} says that it was made from {base[:8]}, and serves as that" if made.note.base_fingerprint else ""
    )


def _check_base(checkpoint: Checkpoint, base: ModelSpec, differing: Sequence[str]) -> None:
    said = checkpoint.note.base_fingerprint
    if differing:
        more = f" and {len(differing) - MAX_DIFFERENCES} more" if len(differing) > MAX_DIFFERENCES else ""
        told = f"{'; '.join(differing[:MAX_DIFFERENCES])}{more}"
        raise UsageError(f"--base cannot be {base.name}: {checkpoint.name} differs from it in {told}", field="base")
    if said not in ("", base.fingerprint):
        raise UsageError(
            f"--base cannot be {base.name}, which is {base.fingerprint}: {checkpoint.name} says that it was made from {said}",
            field="base",
        )


@device_memory()
def load(config: ServeOptions, source: Source, span: Span, progress: Progress) -> LoadedBlocks:
    """Load a span, prove its arithmetic and make the cache. Blocks; run in a thread.

    Raises what is wrong with the model, CapacityError when the memory is too small for the span and a cache, UsageError when
    rows are to be exact and are not.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    checkpoint, model, spec, described = source
    form = _form(config, checkpoint)
    backend = _backend(config, model, form)
    blocks = load_blocks(
        checkpoint,
        model,
        span,
        form,
        progress=lambda done, total: progress("loading blocks", done, total),
        device=config.device,
        build=backend.build,
    )
    weight_bytes = sum(block.size_bytes for block in blocks)
    bits, memory_bytes = 8 * weight_bytes / num_weights(model, span), _memory_bytes(config)
    memory = f"{_gigabytes(weight_bytes)} of {_gigabytes(memory_bytes)} GB"
    progress(f"blocks {span} at {bits:.3g} bits per weight: {memory}", 0, 0)
    progress("proving the arithmetic", 0, 0)
    proof = _checked(config, backend.prove(blocks, model))
    budget = _budget(config, model, memory_bytes - weight_bytes)
    cache = KVCache(model.block.cache_shape, budget.pages, config.kv_dtype, config.device, budget.shared_pages)
    numerics = Numerics(proof.kernel, proof.probe, cache.form, exact=proof.exact)
    ropes = tuple(dict.fromkeys(model.block_config(index).rope for index in span.blocks()))
    prefixes = PrefixCache(
        cache.pages, model.block.hidden_size, cache_positions(ropes), numerics.key, config.share_prefixes, config.device
    )
    runner = Runner(span, backend.assemble(model, span, blocks, cache), cache, prefixes)
    span_info = SpanInfo(
        spec,
        span,
        numerics,
        block_digests(blocks),
        _public_source(described),
        described.revision,
        json.dumps(dict(described.config)).encode(),
        min(config.max_session_tokens, model.max_positions),
        budget.journal_tokens,
        row_codecs=family(model.model_type).row_codecs,
        max_sessions=budget.max_sessions,
        backlog_rows=budget.backlog_rows,
        frame_rows=budget.frame_rows,
    )
    trim_memory()
    kl_nats = known_kl(checkpoint, form) if fingerprint(checkpoint) == spec.fingerprint else None
    return LoadedBlocks(runner, span_info, span_bits(checkpoint, model, span, form), kl_nats)


def _form(config: ServeOptions, checkpoint: Checkpoint) -> WeightFormat:
    """What this server's weights are held in; devices compute from floats alone."""
    form = weight_format(config.dtype, config.quantize, checkpoint)
    return form if config.device == "cpu" else form._replace(keep=False)


def _backend(config: ServeOptions, model: ModelConfig, form: WeightFormat) -> Backend:
    if config.device == "cpu":
        return choose_backend(model, form, config.threads, config.int8_rows)
    return device_backend(config.device, form.dtype, read_dtype(config.kv_dtype), config.exact)


def _checked(config: ServeOptions, proof: Proof) -> Proof:
    if config.exact and not proof.exact:
        raise UsageError(
            f"--exact: rows are not exact here ({proof.kernel}); without it this server says so and goes on"
        )
    return proof


def fetch(source: Source, span: Span) -> None:
    """Have a span's weights on this machine's disk. Blocks; raises what is wrong with them or with the network."""
    if not is_local(source):
        fetch_blocks(source.checkpoint, source.config, span)


def is_local(source: Source) -> bool:
    """Whether the whole checkpoint lies on this machine."""
    return os.path.exists(source.checkpoint.source)


def choose_blocks(config: ServeOptions, source: Source, held: Iterable[ServerRecord]) -> Span:
    """The blocks that the owner named, or those that the swarm lacks most: as many as were asked for or as fit.

    `held` are the records that are known. Raises SpanError, and CapacityError when not one block fits.
    """
    if config.blocks is not None:
        return config.blocks.check(source.model.num_blocks)
    same = [record for record in held if record.model.checkpoint == source.model.checkpoint]
    swarm = SwarmLoad(source.model.num_blocks, server_loads(source.model.num_blocks, same))
    return choose_span(swarm, max_blocks(config, source), fewest=config.num_blocks or 1)


def max_blocks(config: ServeOptions, source: Source) -> int:
    """How many blocks this server may hold: those that were asked for, or as many as fit beside a cache.

    Raises CapacityError when not one fits.
    """
    num_blocks = source.model.num_blocks
    if config.num_blocks is not None:
        return min(config.num_blocks, num_blocks)
    form = _form(config, source.checkpoint)
    memory_bytes, each = _memory_bytes(config), block_bytes(source.config, form, source.checkpoint)
    count = min(num_blocks, _weight_bytes(memory_bytes) // each)
    if count < 1:
        needed = int(each / WEIGHT_SHARE)
        raise CapacityError(f"{memory_bytes >> 20} MB are too little: one block needs {needed >> 20} MB")
    return count


def _weight_bytes(memory_bytes: int) -> int:
    return int(memory_bytes * WEIGHT_SHARE)


def with_chosen_bits(config: ServeOptions, source: Source) -> ServeOptions:
    """The options with the bits for which an owner's memory is meant who named it and neither bits nor blocks.

    Codes are chosen where compiled kernels compute from them: elsewhere they take a byte each. Raises CapacityError where the
    memory is too small.
    """
    if not _leaves_bits_open(config):
        return config
    forms = [None, *(bits for bits in sorted(BITS, reverse=True) if bits >= LEAST_BITS)]
    widths = [
        Width(bits, block_bytes(source.config, weight_format(config.dtype, bits, source.checkpoint), source.checkpoint))
        for bits in forms
    ]
    widths = [one for one in widths if one is widths[0] or one.block_bytes < widths[0].block_bytes]
    weight_bytes = _weight_bytes(_memory_bytes(config))
    plan = plan_memory(widths, source.model.num_blocks, weight_bytes, config.num_blocks)
    return msgspec.structs.replace(config, quantize=plan.width.bits)


def _leaves_bits_open(config: ServeOptions) -> bool:
    named = config.quantize is not None or config.dtype != AUTO or config.blocks is not None
    return config.memory_bytes is not None and not named and config.device == "cpu" and cpu.available()


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f}" if size_bytes >= 10**9 else f"{size_bytes / 1e9:.3f}"


def _memory_bytes(config: ServeOptions) -> int:
    return config.memory_bytes or device_memory_bytes(config.device) or default_memory_bytes()


class _Budget(NamedTuple):
    """Pages of the cache, and how many of a span are kept for other sessions; sessions at once.

    For each session: journal tokens, rows that may wait, and rows in a frame.
    """

    pages: int
    shared_pages: int
    max_sessions: int
    journal_tokens: int
    backlog_rows: int
    frame_rows: int


def _budget(config: ServeOptions, model: ModelConfig, left_bytes: int) -> _Budget:
    """Divide what the weights leave. Raises CapacityError when that is not enough for one page per block."""
    journal_bytes, prefix_bytes = int(left_bytes * JOURNAL_SHARE), int(left_bytes * PREFIX_SHARE)
    token_bytes = 4 * model.block.hidden_size
    buffer_rows = int(left_bytes * BUFFER_SHARE) // token_bytes
    max_sessions = max(1, min(config.max_sessions, buffer_rows // (LEAST_BACKLOG_ROWS + FRAMES_HELD * FRAME_ROWS)))
    journal_tokens = max(0, journal_bytes) // max_sessions // token_bytes
    each_rows = min(buffer_rows, MAX_QUEUED_ROWS) // max_sessions
    frame_rows = min(MAX_ROWS, max(FRAME_ROWS, each_rows // (2 * FRAMES_HELD)))
    backlog_rows = min(MAX_BACKLOG_ROWS, max(LEAST_BACKLOG_ROWS, each_rows - FRAMES_HELD * frame_rows))
    # Each session keeps the output rows of the page that it is filling.
    shared_pages = max(0, prefix_bytes // output_page_bytes(model.block.hidden_size) - config.max_sessions)
    cache_bytes = left_bytes - journal_bytes - buffer_rows * token_bytes - (prefix_bytes if shared_pages else 0)
    useful = model.num_blocks * -(-config.max_session_tokens // PAGE_TOKENS) * max_sessions
    pages = min(cache_bytes // page_bytes(model.block.cache_shape, config.kv_dtype), useful)
    if pages < model.num_blocks:
        raise CapacityError(f"the weights leave {max(0, left_bytes) >> 20} MB: too little for a cache (raise --memory)")
    return _Budget(pages, min(shared_pages, pages), max_sessions, journal_tokens, backlog_rows, frame_rows)


def _public_source(checkpoint: Checkpoint) -> str:
    """What others may be told of where the model came from: a hub id, or a file's name without its folder."""
    if not os.path.exists(checkpoint.source):
        return checkpoint.source
    return Path(os.path.abspath(checkpoint.source)).name or checkpoint.name
