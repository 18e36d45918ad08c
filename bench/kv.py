"""`python -m bench kv`: what a smaller KV cache costs the model's predictions, in nats, what it saves, and what turning its
keys costs in time."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.prompt_text import prompts
from bench.report import commit, hardware
from shoal.engine.backends import Backend, choose_backend
from shoal.engine.batch_queue import PREFILL_CHUNK_ROWS
from shoal.engine.proof import prove_ends
from shoal.engine.runner import Runner
from shoal.kv.cache import KVCache
from shoal.kv.cache_storage import FLOATS, KV_DTYPES, LAYOUTS, CodePages, page_bytes
from shoal.kv.hadamard import UNTURNED
from shoal.kv.pages import PAGE_TOKENS, pages_for
from shoal.model.families import model_config
from shoal.model.nn.block import EmbeddingAndHead, ModelConfig
from shoal.model.weights.block_loading import LoadedBlock, WeightFormat, load_blocks, load_ends
from shoal.model.weights.model_source import demo_model_path, open_checkpoint
from shoal.model.weights.tokenizer import load_tokenizer
from shoal.protocol.rows import Rows
from shoal.types import Span

PAIRS = 15
DECODED = 32
"""Tokens of one side of a pair."""

TARGETS = {"int8": 0.0005, "int4": 0.08}
"""Nats a token that turned keys may cost."""

CODES = tuple(dtype for dtype in KV_DTYPES if dtype not in FLOATS)


class CacheForm(NamedTuple):
    """A dtype of the cache, and whether its keys are turned as servers turn them."""

    dtype: str
    turned: bool = True

    @property
    def name(self) -> str:
        """As the table calls it."""
        return self.dtype if self.turned else f"{self.dtype}, keys as they are"


class Engine(NamedTuple):
    """All of a model's blocks, and its two ends."""

    config: ModelConfig
    backend: Backend
    blocks: Sequence[LoadedBlock]
    ends: EmbeddingAndHead
    tile: int

    def runner(self, form: CacheForm, tokens: int) -> Runner:
        """With a session "text" of so many tokens at most."""
        span, shape = Span(0, self.config.num_blocks), self.config.block.cache_shape
        num_pages = self.config.num_blocks * pages_for(tokens)
        cache = KVCache(shape, num_pages, form.dtype)
        if not form.turned:
            cache.storage = CodePages(shape, num_pages, LAYOUTS[form.dtype](), cache.device, UNTURNED)
        runner = Runner(span, self.backend.assemble(self.config, span, self.blocks, cache), cache)
        runner.open("text", span, tokens)
        return runner


def run(tokens: int, passages: int) -> dict[str, Any]:
    """KL divergence of each form's next-token distributions from those of an fp32 cache, over passages of `tokens` tokens.

    The standard error is that of a passage's mean. Then steps of one token behind a passage, with keys turned and as they are.
    """
    with torch.inference_mode():
        engine, name, kernel, texts = _load(tokens, passages)
        forms = [*map(CacheForm, KV_DTYPES), *(CacheForm(dtype, turned=False) for dtype in CODES)]
        losses = {form: list[Loss]() for form in forms}
        for index, token_ids in enumerate(texts):
            print(f"passage {index + 1} of {passages}", file=sys.stderr, flush=True)
            expected = _predictions(engine, forms[0], token_ids)
            for form in forms:
                losses[form].append(_loss(expected, _predictions(engine, form, token_ids)))
        results = {form.name: _summary(each) | _size(engine.config, form) for form, each in losses.items()}
        print("decoding with keys turned and as they are", file=sys.stderr, flush=True)
        times = {dtype: _turning_cost(engine, texts[0], dtype) for dtype in CODES}
    return {
        "name": "kv",
        "model": name,
        "kernel": kernel,
        "tokens": tokens * passages,
        "passages": passages,
        "dtypes": results,
        "unit": "nats per token from an fp32 cache",
        "targets": TARGETS,
        "within_targets": all(results[dtype]["kl_mean"] <= most for dtype, most in TARGETS.items()),
        "decode": times,
        "hardware": hardware(),
        "commit": commit(),
    }


def _load(tokens: int, passages: int) -> tuple[Engine, str, str, list[list[int]]]:
    """The demo's model on the fastest engine of this machine; its name, the kernel's, and the text."""
    checkpoint = open_checkpoint(str(demo_model_path()))
    config, form = model_config(checkpoint.config), WeightFormat()
    texts = prompts(load_tokenizer(checkpoint), passages, tokens)
    backend = choose_backend(config, form)
    blocks = load_blocks(checkpoint, config, Span(0, config.num_blocks), form, build=backend.build)
    kernel = backend.prove(blocks, config).kernel
    ends = load_ends(checkpoint, config)
    engine = Engine(config, backend, blocks, ends, prove_ends(ends, config.block).tile)
    return engine, checkpoint.name, kernel, texts


def _prefill(engine: Engine, runner: Runner, token_ids: Sequence[int]) -> Tensor:
    """What comes out of the last block [n, hidden], in chunks as servers take them."""
    embedded = torch.split(engine.ends.embed(list(token_ids)), PREFILL_CHUNK_ROWS)
    steps = ([Rows("text", PREFILL_CHUNK_ROWS * index, rows)] for index, rows in enumerate(embedded))
    return torch.cat([runner.step(step)[0] for step in steps])


def _predictions(engine: Engine, form: CacheForm, token_ids: Sequence[int]) -> Tensor:
    """Log-probabilities [n, vocab] of what follows each token."""
    hidden = _prefill(engine, engine.runner(form, len(token_ids)), token_ids)
    return torch.log_softmax(engine.ends.logits(hidden, engine.tile), -1)


class Loss(NamedTuple):
    """Of each token [n] in fp64: KL(expected ‖ found), and 1 where both have the same favourite."""

    kl: Tensor
    same: Tensor


def _loss(expected: Tensor, found: Tensor) -> Loss:
    kl = (expected.exp() * (expected - found)).to(torch.float64).sum(-1)
    return Loss(kl, (expected.argmax(-1) == found.argmax(-1)).to(torch.float64))


def _summary(losses: Sequence[Loss]) -> dict[str, float]:
    """Over the tokens of all passages, which have one length; the error is that of the mean, from the passages' means."""
    kl, same = torch.cat([each.kl for each in losses]), torch.cat([each.same for each in losses])
    means = torch.stack([each.kl.mean() for each in losses])
    return {
        "kl_mean": float(kl.mean()),
        "kl_error": float(means.std() / len(losses) ** 0.5) if len(losses) > 1 else 0.0,
        "kl_p99": float(kl.quantile(0.99)),
        "same_top_token": float(same.mean()),
    }


def _size(config: ModelConfig, form: CacheForm) -> dict[str, float]:
    """What a token takes in all blocks."""
    return {"bytes_per_token": config.num_blocks * page_bytes(config.block.cache_shape, form.dtype) / PAGE_TOKENS}


def _turning_cost(engine: Engine, token_ids: Sequence[int], dtype: str) -> dict[str, float]:
    """Milliseconds of a step of one token through all blocks behind a passage, in pairs: turned ÷ as they are."""
    tokens = len(token_ids) + DECODED
    runners = [engine.runner(CacheForm(dtype, turned), tokens) for turned in (True, False)]
    for runner in runners:
        _prefill(engine, runner, token_ids)
    rows = engine.ends.embed([token_ids[-1]])
    pairs = [[_step_s(runners[side], rows, len(token_ids)) for side in order] for order in _orders()]
    sides = [pair if index % 2 == 0 else pair[::-1] for index, pair in enumerate(pairs)]
    ratios = [turned_s / plain_s for turned_s, plain_s in sides]
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "turned_ms": 1000 * statistics.median(turned_s for turned_s, _ in sides),
        "plain_ms": 1000 * statistics.median(plain_s for _, plain_s in sides),
        "ratio": statistics.median(ratios),
        "ratio_low": quarters[0],
        "ratio_high": quarters[2],
    }


def _orders() -> Iterator[tuple[int, int]]:
    """Which side goes first, by turns."""
    for index in range(PAIRS):
        yield (0, 1) if index % 2 == 0 else (1, 0)


def _step_s(runner: Runner, rows: Tensor, first: int, now: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a step, the mean of some that follow each other; the session is as before."""
    began_at = now()
    for position in range(first, first + DECODED):
        runner.step([Rows("text", position, rows)])
    took_s = now() - began_at
    runner.truncate("text", first)
    return took_s / DECODED
