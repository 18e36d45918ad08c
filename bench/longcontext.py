"""`python -m bench longcontext`: 32,000 tokens through three servers: what they keep, and how the time grows."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.concurrent import Timed, long_prompt
from bench.report import report
from shoal.client.client import AsyncClient
from shoal.client.remote_model import RemoteModel, open_model
from shoal.kv.cache_storage import page_bytes
from shoal.kv.pages import PAGE_TOKENS
from shoal.local_cluster import LocalCluster

SERVERS = 3
FIT_TOKENS = (4096, 8192)
LONG_TOKENS = 32_000
REPLY_TOKENS = 16
RUNS = 5
"""Prefills of each length, in turns: a fit through single ones says more of the machine's moods than of the curve."""

ALLOWED_BYTES = 300 << 20
"""What a server may take beside its keys, values and journals: the interpreter, torch, weights, buffers."""

ALLOWED_TIME = 1.3


def run(runs: int = RUNS) -> dict[str, Any]:
    """Seconds of the long prefill ÷ a·n + b·n² as fitted at the short lengths; peak memory of every process."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _checkpoint(Path(folder))
        with LocalCluster(folder, SERVERS) as swarm:
            started = [_memory_bytes(server.process.pid, "VmHWM") for server in swarm.servers]
            result = asyncio.run(_measure(folder, swarm, runs))
            kept = [result["kv_bytes"] + result["journal_bytes"]] * SERVERS
        return report(
            "longcontext",
            "s",
            result.pop("prefill_s"),
            "a·n + b·n² fitted at 4,096 and 8,192 tokens",
            result.pop("predicted_s"),
            allowed_ratio=ALLOWED_TIME,
            tokens=LONG_TOKENS,
            started_bytes=started,
            allowed_bytes=[own + ALLOWED_BYTES for own in kept],
            within_memory=all(
                peak <= own + ALLOWED_BYTES for peak, own in zip(result["peak_bytes"], kept, strict=True)
            ),
            client_peak_bytes=_memory_bytes("self", "VmHWM"),
            **result,
        )


def _checkpoint(folder: Path) -> None:
    from tests.support.tiny_models import tiny_llama, tiny_tokenizer

    tiny_llama(folder, max_position_embeddings=65_536, vocab_size=258)
    tiny_tokenizer(folder, 258)


def _memory_bytes(pid: int | str, field: str) -> int:
    """A process's memory as Linux tells it; 0 elsewhere."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


async def _measure(folder: str, swarm: LocalCluster, runs: int) -> dict[str, Any]:
    async with AsyncClient([swarm.ticket]) as client, await open_model(client, folder) as model:
        await _prefill_s(model, FIT_TOKENS[0])
        warm = [_memory_bytes(server.process.pid, "VmHWM") for server in swarm.servers]
        # The long one comes first, and memory is read right after it: servers keep the pages of prompts that are over.
        times: dict[int, list[float]] = {LONG_TOKENS: [await _prefill_s(model, LONG_TOKENS)]}
        peaks = [_memory_bytes(server.process.pid, "VmHWM") for server in swarm.servers]
        for run in range(runs):
            for num_tokens in (*FIT_TOKENS, *((LONG_TOKENS,) if run else ())):
                times.setdefault(num_tokens, []).append(await _prefill_s(model, num_tokens))
        prefill_s, short_s, middle_s = (statistics.median(times[length]) for length in (LONG_TOKENS, *FIT_TOKENS))
        config, held = model.config.block, LONG_TOKENS + REPLY_TOKENS
        return {
            "prefill_s": prefill_s,
            "peak_bytes": peaks,
            "predicted_s": predicted(FIT_TOKENS, (short_s, middle_s), LONG_TOKENS),
            "fitted_s": [short_s, middle_s],
            "warm_bytes": warm,
            "kv_bytes": -(-held // PAGE_TOKENS) * page_bytes(config.cache_shape) * model.config.num_blocks // SERVERS,
            "journal_bytes": held * config.hidden_size * 4,
        }


async def _prefill_s(model: RemoteModel, num_tokens: int) -> float:
    reply = Timed(model, long_prompt(model.tokenizer, num_tokens), REPLY_TOKENS)
    await reply.run()
    return reply.result.prefill_s


def predicted(lengths: Sequence[int], times_s: Sequence[float], length: int) -> float:
    """a·n + b·n² through two points, at a third."""
    (n, m), (s, t) = lengths, times_s
    b = (t / m - s / n) / (m - n)
    a = s / n - b * n
    return a * length + b * length * length
