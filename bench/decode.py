"""`python -m bench decode`: three one-thread servers on loopback against the same engine in one process, and transformers."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from bench.peers import Transformers
from bench.report import report
from shoal.local_cluster import LocalCluster
from shoal.model.weights.model_source import demo_model_path
from shoal.server.serve_options import WeightDtype

if TYPE_CHECKING:
    from bench.in_process import InProcessEngine
    from shoal.client.sync import Model

SERVERS = 3
PAIRS = 5
THREADS = 1
DTYPE: WeightDtype = "bfloat16"
PROMPT = "The history of the sea begins with"
PREFILL_TOKENS = 512
MEMORY_BYTES = 1 << 30


def run(tokens: int, pairs: int = PAIRS) -> dict[str, Any]:
    """Decoded tokens per second, and a pipelined prefill; medians over interleaved pairs, all greedy, on the same prompt.

    The swarm's client has its head on one thread too.
    """
    import torch

    torch.set_num_threads(THREADS)
    from bench.in_process import EngineForm, InProcessEngine
    from shoal.client.sync import connect

    count = max(8, tokens // pairs)
    rows: list[dict[str, float]] = []
    options = ("--dtype", DTYPE)
    with (
        LocalCluster(str(demo_model_path()), SERVERS, threads=THREADS, options=options) as swarm,
        connect(peers=[swarm.ticket], head=DTYPE) as model,
    ):
        engine = InProcessEngine(str(demo_model_path()), EngineForm(DTYPE, DTYPE), THREADS, MEMORY_BYTES)
        reference = Transformers(demo_model_path(), THREADS)
        identical = _same(model, engine, count)  # and everything is warm
        for _ in range(pairs):
            rows.append(
                _pair(model, engine, count)
                | {"transformers": reference.decode(model.remote.tokenizer.encode(PROMPT), count)}
            )
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return report(
        "decode",
        "tokens/s",
        medians["swarm"],
        f"the same engine in 1 process, {DTYPE}, {THREADS} thread",
        medians["engine"],
        prefill_ratio=medians["engine_prefill_s"] / medians["swarm_prefill_s"],
        prefill_tokens=PREFILL_TOKENS,
        prefill_s=medians["swarm_prefill_s"],
        identical=identical,
        transformers_fp32=medians["transformers"],
        transformers_ratio=medians["swarm"] / medians["transformers"],
        dtype=DTYPE,
        threads=THREADS,
        pairs=pairs,
    )


def _same(model: Model, engine: InProcessEngine, count: int) -> bool:
    reply = model.generate(PROMPT, max_tokens=count, ignore_eos=True, temperature=0.0)
    return list(reply.token_ids) == engine.decode(reply.prompt_ids, count)[0]


def _pair(model: Model, engine: InProcessEngine, count: int) -> dict[str, float]:
    from bench.concurrent import long_prompt

    short = model.generate(PROMPT, max_tokens=count, ignore_eos=True, temperature=0.0)
    text = model.remote.tokenizer.decode(long_prompt(model.remote.tokenizer, PREFILL_TOKENS))
    long = model.generate(text, max_tokens=1, ignore_eos=True, temperature=0.0)
    return {
        "swarm": short.timings.decode_tokens_per_s,
        "engine": engine.decode(short.prompt_ids, count)[1],
        "swarm_prefill_s": long.timings.prefill_s,
        "engine_prefill_s": engine.prefill_s(long.prompt_ids),
    }
