"""`python -m bench engine`: decoding in one process, against transformers, llama.cpp and the memory's speed."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.report import report
from shoal.model.weights.model_source import demo_model_path

PAIRS = 5
PREFILL_TOKENS = 512
PROMPT = "The history of the sea begins with"
MEMORY_BYTES = 3 << 30


def run(tokens: int, pairs: int = PAIRS, model: Path | None = None) -> dict[str, Any]:
    """Medians over interleaved rounds: tokens per second, and shares of what the machine reads from memory meanwhile.

    `tokens` are decoded in all by each side. Every side has all cores. `model` is a GGUF file, since llama.cpp reads no
    other; without one it is SmolLM2-135M.
    """
    from bench.bandwidth import Bandwidth
    from bench.concurrent import long_prompt
    from bench.in_process import EngineForm, InProcessEngine
    from bench.peers import Transformers
    from shoal.model.weights.model_source import open_checkpoint
    from shoal.model.weights.tokenizer import load_tokenizer

    file = model or demo_model_path()
    path, threads, count = str(file), os.cpu_count() or 1, max(16, tokens // pairs)
    forms = {
        "fp32": EngineForm(),
        "bf16": EngineForm("bfloat16", "bfloat16"),
        "q4": EngineForm("float32", "int8", 4),
        "q4_int8": EngineForm("float32", "int8", 4, int8_rows=True),
        "q3": EngineForm("float32", "int8", 3),
        "q3_int8": EngineForm("float32", "int8", 3, int8_rows=True),
        "as_stored": EngineForm("auto", "int8"),
    }
    ours = {name: InProcessEngine(path, form, threads, MEMORY_BYTES) for name, form in forms.items()}
    transformers, llama, bandwidth = Transformers(file, threads), _llama(file, threads), Bandwidth(threads)
    tokenizer = load_tokenizer(open_checkpoint(path))
    prompt = tokenizer.encode(PROMPT)
    rounds = []
    for number in range(pairs + 1):
        print(f"round {number} of {pairs}", file=sys.stderr, flush=True)
        long_ids = long_prompt(tokenizer, PREFILL_TOKENS)
        one = {name: engine.decode(prompt, count)[1] for name, engine in ours.items()}
        one |= {"transformers": transformers.decode(prompt, count), "bandwidth": bandwidth.measure()}
        one |= {"llama_cpp": llama.decode(prompt, count)} if llama else {}
        one |= {f"{name}_prefill": PREFILL_TOKENS / engine.prefill_s(long_ids) for name, engine in ours.items()}
        one["transformers_prefill"] = PREFILL_TOKENS / transformers.prefill_s(long_ids)
        rounds.append(one)
    rates = {name: statistics.median(one[name] for one in rounds[1:]) for name in rounds[0]}
    limit = rates.pop("bandwidth")
    return report(
        "engine",
        "tokens/s",
        rates["fp32"],
        "transformers, fp32",
        rates["transformers"],
        bf16_ratio=rates["bf16"] / rates["transformers"],
        q4_ratio=rates["q4"] / rates["llama_cpp"] if llama else None,
        q4_int8_ratio=rates["q4_int8"] / rates["llama_cpp"] if llama else None,
        as_stored_ratio=rates["as_stored"] / rates["llama_cpp"] if llama else None,
        prefill_ratio=rates["fp32_prefill"] / rates["transformers_prefill"],
        model=file.name,
        bandwidth_bytes_per_s=limit,
        bandwidth_share={name: {"of bandwidth": rates[name] * ours[name].token_bytes / limit} for name in ours},
        tokens_per_s={name: {"tokens/s": rate} for name, rate in rates.items()},
        instruction_set=_instruction_set(),
        threads=threads,
        pairs=pairs,
        note="" if llama else "llama.cpp is not installed: pip install 'shoal[peers]'",
    )


def _llama(path: Path, threads: int) -> Any:
    from bench.peers import LlamaCpp

    try:
        return LlamaCpp(path, threads)
    except ImportError:
        return None


def _instruction_set() -> str:
    from shoal.model.kernels import cpu

    return {0: "none: plain torch", cpu.AVX2: "AVX2", cpu.AVX512: "AVX-512"}[cpu.instruction_set()]
