"""What a family has to hold to be certified against transformers, each as a function of a checkpoint that both have loaded."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.engine.backends import choose_backend
from shoal.engine.proof import prove
from shoal.engine.runner import Runner
from shoal.errors import UsageError
from shoal.kv.cache import KVCache
from shoal.model.families import FAMILIES, model_config
from shoal.model.kernels import cpu
from shoal.model.kernels.native_linear import NativeLinear
from shoal.model.nn.block import Block, BlockConfig, EmbeddingAndHead, ModelConfig
from shoal.model.nn.block_weights import BlockWeights
from shoal.model.row_tensors import decode_tensor, encode_tensor
from shoal.model.weights.block_loading import load_blocks, load_ends, weight_format
from shoal.model.weights.model_source import open_checkpoint
from shoal.protocol.messages import RowCodec
from shoal.protocol.rows import Rows
from shoal.types import Span
from tests.foreign.cases import FOREIGN, path_of, save_original
from tests.support.family_cases import Case
from tests.support.gguf_files import write_gguf
from tests.support.hollow_cases import VISIBLE, HollowCase, changes, check_tokens, moved, rolled
from tests.support.tiny_models import torch_runner

PROMPT_TOKENS = 150
GREEDY_TOKENS = 128
CODEC_LIMIT = 1e-3
"""Nats that a codec may cost a single row."""

EIGHT_BITS_LIMIT, FOUR_BITS_LIMIT = 1e-2, 0.25
"""Nats that quantized weights may cost a row on average. Random weights have nothing to spare: real models lose less."""


class Loaded(NamedTuple):
    """The same checkpoint in both systems. Sessions are opened with `granted` tokens."""

    config: ModelConfig
    blocks: list[Block]
    ends: EmbeddingAndHead
    tile: int
    reference: Any
    granted: int = 300
    directory: Path = Path()

    def runner(self, span: Span, dtype: str = "float32") -> Runner:
        """A runner over a part of the model with an empty cache."""
        blocks = self.blocks[span.start : span.stop]
        cache = KVCache(self.config.block.cache_shape, (-(-self.granted // 64) + 2) * 2 * len(span), dtype)
        return torch_runner(self.config.block, span, blocks, cache, self.tile)


def load(directory: Path, granted: int = 300, dtype: str = "float32") -> Loaded:
    """A checkpoint, loaded by both; this side's matrices rounded to `dtype`."""
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(str(directory))
    config = model_config(checkpoint.config)
    blocks: list[Block] = load_blocks(checkpoint, config, Span(0, config.num_blocks), dtype)
    reference = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    tile = prove(blocks, config).tile
    return Loaded(config, blocks, load_ends(checkpoint, config, dtype), tile, reference.eval(), granted, directory)


def prompt(vocab_size: int, count: int = PROMPT_TOKENS) -> list[int]:
    """Token ids that are not periodic."""
    return [(7 * index * index + 3 * index + 5) % vocab_size for index in range(count)]


def opened(loaded: Loaded, cuts: Sequence[int] = ()) -> list[Runner]:
    """The model in parts, cut at these blocks, with a session open in each."""
    edges = (0, *cuts, loaded.config.num_blocks)
    runners = [loaded.runner(Span(*edge)) for edge in itertools.pairwise(edges)]
    for runner in runners:
        runner.open("one", runner.span, loaded.granted)
    return runners


def through(runners: Sequence[Runner], rows: Tensor, position: int, codec: RowCodec = "fp32") -> Tensor:
    """Rows through the parts of a model, one after the other; they travel in a codec."""
    for runner in runners:
        rows = runner.step([Rows("one", position, _sent(rows, codec))])[0]
    return _sent(rows, codec)


def _sent(rows: Tensor, codec: RowCodec) -> Tensor:
    return decode_tensor(encode_tensor(rows, codec), rows.shape[0], rows.shape[1], codec)


def greedy(loaded: Loaded, runners: Sequence[Runner], count: int) -> tuple[list[int], list[Tensor]]:
    """The most likely continuation of the prompt, and the hidden states on the way."""
    ids = prompt(loaded.config.vocab_size)
    rows, position, tokens = through(runners, loaded.ends.embed(ids), 0), len(ids), []
    states = [rows]
    for _ in range(count):
        tokens.append(int(loaded.ends.logits(states[-1][-1:], loaded.tile).argmax()))
        states.append(through(runners, loaded.ends.embed(tokens[-1:]), position))
        position += 1
    return tokens, states


def reference_logits(loaded: Loaded, ids: Sequence[int]) -> Tensor:
    """transformers' logits [n, vocab] of a whole sequence at once."""
    with torch.no_grad():
        logits: Tensor = loaded.reference(torch.tensor([list(ids)])).logits[0]
    return logits


def logits(loaded: Loaded, cuts: Sequence[int] = (), codec: RowCodec = "fp32") -> Tensor:
    """This side's logits [n, vocab] of the prompt, through parts of the model."""
    rows = through(opened(loaded, cuts), loaded.ends.embed(prompt(loaded.config.vocab_size)), 0, codec)
    return loaded.ends.logits(rows, loaded.tile)


def logit_error(loaded: Loaded) -> float:
    """The largest difference between this side's logits of the prompt and transformers'."""
    expected = reference_logits(loaded, prompt(loaded.config.vocab_size))
    return float((logits(loaded) - expected).abs().max())


class _Weights:
    """A block's weights, kept instead of a block."""

    digest, size_bytes = "", 0

    def __init__(self, config: BlockConfig, weights: BlockWeights) -> None:
        self.config = config
        self.weights = weights


def check_case(loaded: Loaded) -> float:
    """0.0; raises HollowCase unless the case shows any mistake: its tokens differ, and each number and weight is seen."""
    ids, config = prompt(loaded.config.vocab_size), loaded.config
    before = logits(loaded)
    check_tokens(ids, before.argmax(-1).tolist(), "the most likely next tokens of the prompt")
    checkpoint = open_checkpoint(str(loaded.directory))
    kept = load_blocks(checkpoint, config, Span(0, config.num_blocks), build=_Weights)
    silent = []
    for change in changes(config, loaded.granted):
        blocks = [Block(change.config.block_config(index), one.weights) for index, one in enumerate(kept)]
        other = loaded._replace(config=change.config, blocks=blocks, ends=load_ends(checkpoint, change.config))
        if (by := moved(before, logits(other))) < VISIBLE:
            silent.append(f"{change.what} moves logits by {by:.0e}")
    last = {one.config: index for index, one in enumerate(kept)}
    for index in last.values():
        for role, weights in rolled(kept[index].config, kept[index].weights):
            blocks = [*loaded.blocks]
            blocks[index] = Block(config.block_config(index), weights)
            if (by := moved(before, logits(loaded._replace(blocks=blocks)))) < VISIBLE:
                silent.append(f"block {index}: another {role} moves logits by {by:.0e}")
    if silent:
        raise HollowCase("; ".join(silent))
    return 0.0


def greedy_differences(loaded: Loaded, count: int = GREEDY_TOKENS) -> int:
    """How many of this side's greedy tokens are not those of transformers' own `generate`; raises HollowCase."""
    ids = prompt(loaded.config.vocab_size)
    tokens, _ = greedy(loaded, opened(loaded), count)
    check_tokens([ids[-1], *tokens[:-1]], tokens, "the greedy reply")
    given = torch.tensor([ids])
    with torch.no_grad():
        generated = loaded.reference.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    theirs = generated[0, len(ids) :].tolist()
    return sum(one != other for one, other in zip(tokens, theirs, strict=True))


def splits_equal(loaded: Loaded, count: int = 4) -> bool:
    """Whether every single cut, and all at once, give the same bits in prefill and decode as no cut."""
    count = min(count, loaded.granted - PROMPT_TOKENS)
    tokens, states = greedy(loaded, opened(loaded), count)
    inner = range(1, loaded.config.num_blocks)
    for cuts in (*((cut,) for cut in inner), tuple(inner)):
        split_tokens, split_states = greedy(loaded, opened(loaded, cuts), count)
        if split_tokens != tokens or not all(map(torch.equal, states, split_states)):
            return False
    return True


def rows_exact(loaded: Loaded) -> bool:
    """Whether rows come out the same bits in chunks of several sizes beside another session, and logits alone as together."""
    ids = prompt(loaded.config.vocab_size)
    rows = loaded.ends.embed(ids)
    expected = through(opened(loaded), rows, 0)
    span = Span(0, loaded.config.num_blocks)
    runner = loaded.runner(span)
    runner.open("one", span, loaded.granted)
    runner.open("company", span, loaded.granted)
    company, done, beside = loaded.ends.embed(ids[::-1]), 0, 0
    for size in (1, 7, 2, 64, 1, 30, 45):
        batch = [Rows("one", done, rows[done : done + size]), Rows("company", beside, company[beside:][:9])]
        got = runner.step(batch if size % 2 else batch[::-1])[0 if size % 2 else 1]
        if not torch.equal(got, expected[done : done + size]):
            return False
        done, beside = done + size, beside + 9
    together = loaded.ends.logits(expected, loaded.tile)
    pieces = ((0, 1), (3, 2), (50, 7), (149, 1))
    return done == len(ids) and all(
        torch.equal(loaded.ends.logits(expected[at : at + n], loaded.tile), together[at : at + n]) for at, n in pieces
    )


def divergence(given: Tensor, expected: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the next token's distribution for each row [n], in nats, from logits [n, vocab]."""
    log_expected, log_given = expected.double().log_softmax(-1), given.double().log_softmax(-1)
    return (log_expected.exp() * (log_expected - log_given)).sum(-1)


def codec_divergence(loaded: Loaded, codec: RowCodec) -> float:
    """What rows cost at worst that travel in a codec between all blocks, against fp32: nats of the row that it costs most."""
    cuts = range(1, loaded.config.num_blocks)
    return float(divergence(logits(loaded, tuple(cuts), codec), logits(loaded)).max())


def from_gguf(loaded: Loaded, path: Path) -> Loaded:
    """The same model from a GGUF file."""
    checkpoint = open_checkpoint(str(path))
    config = model_config(checkpoint.config)
    blocks: list[Block] = load_blocks(checkpoint, config, Span(0, config.num_blocks))
    return loaded._replace(config=config, blocks=blocks, ends=load_ends(checkpoint, config))


def gguf_error(loaded: Loaded) -> float:
    """The largest difference between logits of the checkpoint and of a GGUF file made of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(loaded.directory, path)
        return float((logits(from_gguf(loaded, path)) - logits(loaded)).abs().max())


def foreign_error(model_type: str) -> float | None:
    """The largest difference of logits between files that llama.cpp wrote of a family and transformers; None without a file.

    Infinite where a number of any tensor is another one than in the checkpoint.
    """
    largest = None
    for case in (case for case in FOREIGN if case.model_type == model_type):
        with tempfile.TemporaryDirectory() as folder:
            loaded = load(save_original(case, folder), case.granted)
            original, file = open_checkpoint(folder), open_checkpoint(str(path_of(case)))
            same = all(torch.equal(file.read(name), original.read(name)) for name in file.tensors)
            expected = reference_logits(loaded, prompt(loaded.config.vocab_size))
            by = float((logits(from_gguf(loaded, path_of(case))) - expected).abs().max()) if same else math.inf
            largest = max(by, largest or 0.0)
    return largest


def quantized_divergence(loaded: Loaded, bits: int) -> float:
    """What blocks whose matrices are rounded to nearest cost against fp32, in nats, the mean over rows."""
    span = Span(0, loaded.config.num_blocks)
    form = weight_format("float32", bits)
    blocks: list[Block] = load_blocks(open_checkpoint(str(loaded.directory)), loaded.config, span, form)
    return float(divergence(logits(loaded._replace(blocks=blocks)), logits(loaded)).mean())


def kernels_error(loaded: Loaded) -> float | None:
    """The largest difference between logits through this machine's fastest blocks and in plain torch; None without kernels."""
    if not cpu.available():
        return None
    span, config, form = Span(0, loaded.config.num_blocks), loaded.config, weight_format("float32")
    backend = choose_backend(config, form, 1)
    checkpoint = open_checkpoint(str(loaded.directory))
    blocks = load_blocks(checkpoint, config, span, form, build=backend.build)
    for block in blocks:
        if isinstance(block, Block) and not any(isinstance(linear, NativeLinear) for linear in block.linears()):
            raise HollowCase("a block has nothing that the compiled kernels compute")
    try:
        backend.prove(blocks, config)
    except UsageError:  # they are not even exact, or right on canned weights
        return math.inf
    cache = KVCache(config.block.cache_shape, (-(-loaded.granted // 64) + 2) * len(span))
    runner = Runner(span, backend.assemble(config, span, blocks, cache), cache)
    runner.open("one", span, loaded.granted)
    rows = through([runner], loaded.ends.embed(prompt(config.vocab_size)), 0)
    return float((loaded.ends.logits(rows, loaded.tile) - logits(loaded)).abs().max())


class Property(NamedTuple):
    """A column of docs/families.md. `measure` gives a number that must not be above `limit`; None: the case is not asked."""

    name: str
    title: str
    limit: float
    measure: Callable[[Loaded, Case], float | None]


def _once(case: Case, measure: Callable[[str], float | None]) -> float | None:
    """What is measured of a family and not of its variants."""
    return None if case.name else measure(case.model_type)


PROPERTIES: tuple[Property, ...] = (
    Property("telling", "any mistake shows", 0, lambda loaded, case: check_case(loaded)),
    Property("logits", "logits within 1e-4", 1e-4, lambda loaded, case: logit_error(loaded)),
    Property("greedy", "128 greedy tokens", 0, lambda loaded, case: None if case.name else greedy_differences(loaded)),
    Property("splits", "any split, same bits", 0, lambda loaded, case: float(not splits_equal(loaded))),
    Property("rows", "row-exact", 0, lambda loaded, case: float(not rows_exact(loaded))),
    Property("kernels", "on compiled kernels", 1e-4, lambda loaded, case: kernels_error(loaded)),
    Property("gguf", "from GGUF", 2e-5, lambda loaded, case: gguf_error(loaded) if case.gguf else None),
    Property("foreign", "from llama.cpp's own files", 1e-4, lambda loaded, case: _once(case, foreign_error)),
    Property("8 bits", "weights in 8 bits", EIGHT_BITS_LIMIT, lambda loaded, case: quantized_divergence(loaded, 8)),
    Property("4 bits", "weights in 4 bits", FOUR_BITS_LIMIT, lambda loaded, case: quantized_divergence(loaded, 4)),
    Property("bf16", "rows as bf16", CODEC_LIMIT, lambda loaded, case: codec_divergence(loaded, "bf16")),
    Property("fp16", "rows as fp16", CODEC_LIMIT, lambda loaded, case: codec_divergence(loaded, "fp16")),
)
CODECS = ("bf16", "fp16")


def required(case: Case, name: str) -> bool:
    """Whether a property has to hold: a codec only where the family offers it."""
    return name not in CODECS or name in FAMILIES[case.model_type].row_codecs
