"""`shoal bench decode`: three one-thread servers on loopback against transformers in one process."""

from __future__ import annotations

import statistics
import time
from typing import Any

from shoal.bench.report import report
from shoal.cli.swarm import LocalSwarm
from shoal.weights.source import demo_model_path

PAIRS = 3
THREADS = 1
PROMPT = "The history of the sea begins with"


def run(tokens: int) -> dict[str, Any]:
    """Decoded tokens per second, medians over interleaved pairs; both sides greedy, fp32, one thread, the same prompt."""
    import torch

    torch.set_num_threads(THREADS)
    from shoal.client.sync import connect

    count = tokens // PAIRS
    ours: list[float] = []
    theirs: list[float] = []
    with LocalSwarm(str(demo_model_path()), 3, threads=THREADS) as swarm, connect(peers=[swarm.ticket]) as model:
        reference = _reference()
        prompt_ids = model.remote.tokenizer.encode(PROMPT)
        for _ in range(PAIRS):
            model.generate(PROMPT, max_tokens=count, ignore_eos=True)
            assert model.last is not None
            ours.append(model.last.decode_tokens_per_s)
            theirs.append(_transformers_rate(reference, prompt_ids, count))
    return report(
        "decode",
        "tokens/s",
        statistics.median(ours),
        "transformers generate, fp32, 1 process",
        statistics.median(theirs),
        threads=THREADS,
        pairs=PAIRS,
    )


def _reference() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    path = demo_model_path()
    return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()


def _transformers_rate(model: Any, prompt_ids: list[int], count: int) -> float:
    """Tokens per second after the first, by the difference of a long and a one-token run."""
    import torch

    ids = torch.tensor([prompt_ids])

    def timed(new_tokens: int) -> float:
        started_at = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0)
        return time.perf_counter() - started_at

    return (count - 1) / (timed(count) - timed(1))
