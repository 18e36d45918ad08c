"""Our own engine in one process, without any network: what a swarm is measured against."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from shoal.client.remote_model import head_form
from shoal.engine.backends import choose_linears
from shoal.engine.batch_queue import PREFILL_CHUNK_ROWS
from shoal.engine.proof import prove_ends
from shoal.model.families import model_config
from shoal.model.nn.sampling import sample
from shoal.model.nn.sampling_params import SamplingParams
from shoal.model.weights.block_loading import load_ends, weight_format
from shoal.model.weights.weight_bits import block_bytes
from shoal.protocol.rows import Rows
from shoal.server.hosting.span_loading import load, open_source
from shoal.server.serve_options import QuantizedBits, ServeOptions, WeightDtype
from shoal.types import Span

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


class EngineForm(NamedTuple):
    """How weights are kept: see `shoal serve --dtype --quantize --int8-rows` and, for the head, `client.model.HEADS`."""

    dtype: WeightDtype = "float32"
    head: str = "float32"
    quantize: QuantizedBits | None = None
    int8_rows: bool = False


class InProcessEngine:
    """All blocks as a server loads them, and both ends as a client does. Blocks while it loads."""

    def __init__(self, model: str, form: EngineForm, threads: int, memory_bytes: int) -> None:
        config = ServeOptions(
            model=model,
            dtype=form.dtype,
            quantize=form.quantize,
            int8_rows=form.int8_rows,
            threads=threads,
            memory_bytes=memory_bytes,
        )
        source = open_source(config)
        self.span = Span(0, source.model.num_blocks)
        self._runner = load(config, source, self.span, lambda what, done, total: None).runner
        self._torch_threads = torch.get_num_threads()  # as a server's would be; peers in this process want others
        shape, head = model_config(source.checkpoint.config), head_form(form.head)
        self._ends = load_ends(source.checkpoint, shape, head, choose_linears(head, threads, form.int8_rows))
        self._tile = prove_ends(self._ends, shape.block).tile
        weights = (
            block_bytes(source.config, weight_format(form.dtype, form.quantize, source.checkpoint), source.checkpoint)
            * source.model.num_blocks
        )
        self.token_bytes = weights + self._ends.head.size_bytes
        """Weights that a token reads."""

    def prefill_s(self, prompt_ids: Sequence[int]) -> float:
        """Seconds until the first token of a reply."""
        return self._reply(prompt_ids, 1)[1]

    def decode(self, prompt_ids: Sequence[int], count: int) -> tuple[list[int], float]:
        """A greedy reply of `count` tokens, and its tokens per second after the first."""
        tokens, _, decode_s = self._reply(prompt_ids, count)
        return tokens, (count - 1) / decode_s

    def _reply(self, prompt_ids: Sequence[int], count: int) -> tuple[list[int], float, float]:
        """Tokens, seconds until the first, and seconds for the others."""
        torch.set_num_threads(self._torch_threads)
        self._runner.open("bench", self.span, len(prompt_ids) + count)
        try:
            began_at = time.perf_counter()
            ids, tokens = list(prompt_ids), [self._next(prompt_ids, 0, prompt_ids)]
            first_at = time.perf_counter()
            while len(tokens) < count:
                tokens.append(self._next(tokens[-1:], len(ids) + len(tokens) - 1, ids + tokens))
            return tokens, first_at - began_at, time.perf_counter() - first_at
        finally:
            self._runner.close("bench")

    def _next(self, token_ids: Sequence[int], position: int, history: Sequence[int]) -> int:
        with torch.inference_mode():
            rows = self._ends.embed(list(token_ids))
            for chunk in torch.split(rows, PREFILL_CHUNK_ROWS):
                (hidden,) = self._runner.step([Rows("bench", position, chunk)])
                position += chunk.shape[0]
            logits = self._ends.logits(hidden[-1:], self._tile)[0]
            return sample(logits, GREEDY, 0, position, history)
