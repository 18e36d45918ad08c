"""`python -m bench prefix`: the time to the first token of a prompt that this client has sent before, in another session."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

from bench.prompt_text import prompts
from bench.report import report
from shoal.client.client import AsyncClient
from shoal.client.completion import GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.client.remote_model import RemoteModel, open_model
from shoal.local_cluster import LocalCluster
from shoal.model.nn.sampling_params import SamplingParams
from shoal.model.weights.model_source import demo_model_path

SERVERS = 3
PROMPT_TOKENS = 1500
AIM = 0.2
"""The second time ÷ the first."""


def run(count: int) -> dict[str, Any]:
    """Medians over `count` prompts of 1,500 tokens through three one-thread servers, each in two new sessions of one client."""
    import torch

    torch.set_num_threads(1)
    with LocalCluster(str(demo_model_path()), SERVERS) as swarm:
        return asyncio.run(_run(swarm.ticket, count))


async def _run(ticket: str, count: int) -> dict[str, Any]:
    pairs: dict[str, dict[str, float]] = {}
    async with AsyncClient([ticket]) as client, await open_model(client, str(demo_model_path())) as model:
        for index, token_ids in enumerate(prompts(model.tokenizer, count, PROMPT_TOKENS)):
            first_s, first = await _first_token(model, token_ids)
            second_s, second = await _first_token(model, token_ids)
            assert first == second, "a page that was found changed the reply"
            pairs[f"prompt {index + 1}"] = {"first_s": first_s, "second_s": second_s, "ratio": second_s / first_s}
            print(f"prompt {index + 1}: {pairs[f'prompt {index + 1}']}", file=sys.stderr, flush=True)
        found = sum(server.status.prefix_rows for server in await client.status() if server.status is not None)
    return report(
        "prefix",
        "s to the first token, second time",
        statistics.median(pair["second_s"] for pair in pairs.values()),
        "the first time",
        statistics.median(pair["first_s"] for pair in pairs.values()),
        aim=AIM,
        ratio_median=statistics.median(pair["ratio"] for pair in pairs.values()),
        prompt_tokens=PROMPT_TOKENS,
        servers=SERVERS,
        prompts=pairs,
        rows_found=found,
    )


async def _first_token(model: RemoteModel, token_ids: list[int]) -> tuple[float, list[int]]:
    """Seconds from opening a session to its first token, and that token."""
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    result = GrowingReply(token_ids, params)
    began = time.monotonic()
    async with model.client.session(model.spec, options=model.session_options(len(token_ids) + 1)) as session:
        async for _ in SessionDecoder(model, session).generate(result):
            pass
        return time.monotonic() - began, result.token_ids
