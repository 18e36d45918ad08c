"""`python -m bench batch`: eight sessions of one server against one alone, and beside a long prefill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.concurrent import Rates, Timed, long_prompt, percentile, prompts, rates, together
from bench.report import report
from shoal.client.client import AsyncClient
from shoal.client.remote_model import RemoteModel, open_model
from shoal.errors import ShoalError
from shoal.local_cluster import LocalCluster
from shoal.model.weights.model_source import demo_model_path

SESSIONS = 8
THREADS = 2
DTYPE = "bfloat16"
PAIRS = 5
PREFILL_TOKENS = 4096
QUIET_TOKENS = 32
"""Tokens of each of the others before the prefill begins, and again after it has ended: the steps without it. Sessions grow
meanwhile, and steps with them, so that those before would be too short and those after too long a measure."""

OTHERS_TOKENS = 2560
"""Tokens that each of the others may make: more than they come to while the prefill lasts. All must fit in the server's cache:
some would wait for room for ever."""

CACHE_MEMORY = "4GB"
"""Of the server, weights included: seven such sessions and the prefill, in fp32."""


def run(tokens: int, pairs: int = PAIRS) -> dict[str, Any]:
    """Tokens per second of eight sessions together ÷ of one alone; medians over interleaved pairs."""
    import torch

    torch.set_num_threads(1)
    with _swarm() as swarm:
        result = asyncio.run(_measure(swarm.ticket, tokens, pairs))
    return report(
        "batch",
        "tokens/s",
        result.pop("together"),
        "one session alone",
        result.pop("alone"),
        sessions=SESSIONS,
        threads=THREADS,
        dtype=DTYPE,
        pairs=pairs,
        **result,
        **_quantized(tokens, pairs),
    )


def _swarm(*options: str) -> LocalCluster:
    return LocalCluster(
        str(demo_model_path()), 1, threads=THREADS, options=("--dtype", DTYPE, "--memory", CACHE_MEMORY, *options)
    )


async def _measure(ticket: str, tokens: int, pairs: int) -> dict[str, Any]:
    async with AsyncClient([ticket]) as client, await open_model(client, None, head=DTYPE) as model:
        result = await _sessions(model, tokens, pairs)
        result["processes_ratio"] = await _processes(ticket, tokens, pairs) / result["alone"]
        return {**result, **await _beside_prefill(model, pairs)}


async def _sessions(model: RemoteModel, tokens: int, pairs: int) -> dict[str, Any]:
    """One session, then eight of this process, again and again."""
    ids = prompts(model, SESSIONS)
    expected = [await _alone(model, prompt, tokens) for prompt in ids]
    alone: list[float] = []
    crowds: list[Rates] = []
    identical = True
    for pair in range(pairs):
        single = await _alone(model, ids[pair % SESSIONS], tokens)
        alone.append(rates([single.times]).total)
        replies = [Timed(model, prompt, tokens) for prompt in ids]
        crowds.append(await together(replies))
        identical &= all(
            reply.result.token_ids == lone.result.token_ids for reply, lone in zip(replies, expected, strict=True)
        )
    return {
        "alone": statistics.median(alone),
        "together": statistics.median(crowd.total for crowd in crowds),
        "fairness": min(crowd.fairness for crowd in crowds),
        "identical": identical,
        "head_batches": dict(sorted(model.head.batch_rows.items())),
    }


async def _alone(model: RemoteModel, prompt: Sequence[int], tokens: int) -> Timed:
    reply = Timed(model, prompt, tokens)
    await reply.run()
    return reply


async def _processes(ticket: str, tokens: int, pairs: int) -> float:
    """The median rate of eight clients in processes of their own."""
    return statistics.median([await asyncio.to_thread(_crowd_of_processes, ticket, tokens) for _ in range(pairs)])


def _crowd_of_processes(ticket: str, tokens: int) -> float:
    command = [sys.executable, "-m", "bench.batch", ticket, str(tokens)]
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                subprocess.Popen([*command, str(index)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for index in range(SESSIONS)
        ]
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()  # it is connected
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        return rates([json.loads(client.communicate()[0]) for client in clients]).total


async def _client(ticket: str, tokens: int, index: int) -> None:
    """One of the eight processes: says that it is connected, waits for a line, prints when its tokens came."""
    async with AsyncClient([ticket]) as client, await open_model(client, None, head=DTYPE) as model:
        print("connected", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        reply = await _alone(model, prompts(model, SESSIONS)[index], tokens)
        print(json.dumps(reply.times), flush=True)


async def _beside_prefill(model: RemoteModel, pairs: int) -> dict[str, Any]:
    """Seven sessions decode; then a long prompt comes."""
    steps: list[float] = []
    prefills: list[float] = []
    for _ in range(pairs):
        lone = await _alone(model, long_prompt(model.tokenizer, PREFILL_TOKENS), 1)
        step, prefill_s = await _disturbed(model, long_prompt(model.tokenizer, PREFILL_TOKENS))
        steps.append(step)
        prefills.append(prefill_s / lone.result.prefill_s)
    return {
        "prefill_tokens": PREFILL_TOKENS,
        "others_p95_ratio": statistics.median(steps),
        "prefill_time_ratio": statistics.median(prefills),
    }


async def _disturbed(model: RemoteModel, prompt: Sequence[int]) -> tuple[float, float]:
    """The others' 95th percentile of a step beside the prefill ÷ without it, and how long the prefill took."""
    others = [Timed(model, own, OTHERS_TOKENS) for own in prompts(model, SESSIONS - 1)]
    tasks = [asyncio.ensure_future(other.run()) for other in others]
    try:
        for other in others:
            await other.until(QUIET_TOKENS)
        settled, began = max(other.times[QUIET_TOKENS // 4] for other in others), time.time()
        long = await _alone(model, prompt, 1)
        ended = time.time()
        for other, count in [(other, len(other.times)) for other in others]:
            await other.until(count + QUIET_TOKENS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    windows = ((settled, began), (ended, float("inf")))
    quiet = [gap for other in others for window in windows for gap in other.gaps_s(*window)]
    beside = [gap for other in others for gap in other.gaps_s(began, ended)]
    return percentile(beside, 0.95) / percentile(quiet, 0.95), long.result.prefill_s


def _quantized(tokens: int, pairs: int) -> dict[str, Any]:
    """The same ratio on a server of 4-bit weights; a note instead where servers do not offer that."""
    try:
        with _swarm("--quantize", "4") as swarm:
            result = asyncio.run(_quantized_sessions(swarm.ticket, tokens, pairs))
    except ShoalError as error:
        lines = [line.strip(" │") for line in str(error).splitlines()]
        told = next((line for line in lines if "option" in line and "usage" not in line.lower()), lines[-1])
        return {"quantized_note": f"left out, the server said: {told[:200]}"}
    return {f"quantized_{key}": result[key] for key in ("alone", "together", "fairness", "identical")}


async def _quantized_sessions(ticket: str, tokens: int, pairs: int) -> dict[str, Any]:
    async with AsyncClient([ticket]) as client, await open_model(client, None, head=DTYPE) as model:
        return await _sessions(model, tokens, pairs)


if __name__ == "__main__":
    asyncio.run(_client(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
