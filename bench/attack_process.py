"""One party of `bench attacks`, in a process of its own: one of PARTIES, with its arguments as a list in JSON. It says one line
of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.client.completion import GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.client.remote_model import open_model
from shoal.errors import ShoalError
from shoal.model.kernels import strict
from shoal.model.nn.sampling_params import SamplingParams
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.swarm.directory.records import ServerRecord
from shoal.types import Span
from tests.attacks.hostile_client import LIES as FLOODS
from tests.attacks.hostile_client import HostileClient, compute_greedily, crowd_host
from tests.attacks.hostile_client import lying as telling
from tests.attacks.hostile_server import LIES, lying

GREED_BEGINS_S = 8.0
"""How long greedy clients have the server to themselves."""


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def server(model: str, blocks: str, lie: str, peers: list[str], memory_mb: int) -> None:
    """Serve until the input ends."""
    options = ServeOptions(
        model=model,
        blocks=Span.parse(blocks),
        peers=tuple(peers),
        name=lie or f"honest {blocks}",
        transport="tls",
        memory_bytes=memory_mb * 10**6,
    )
    async with Server(options, wrap=lying(LIES[lie]()) if lie else None) as served:
        _say({"ticket": served.ticket, "peer": served.identity.peer})
        await asyncio.to_thread(sys.stdin.read)


async def client(
    model: str, tickets: list[str], distrusted: list[str], prompt: str, tokens: int, replies: int = 1
) -> None:
    """Greedy replies, one after the other; servers in `distrusted` come after all others.

    Times are medians; `opened_s` is the worst time until a session was open, from connecting on.
    """
    answer: dict[str, Any] = {}
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    seconds, opened_s = list[float](), list[float]()
    for _ in range(replies):
        comes_at = time.monotonic()
        async with AsyncClient(tickets, only="tls") as swarm, await open_model(swarm, model) as remote:
            for record in swarm.records():
                if record.peer in distrusted:
                    swarm.caught(record)
            reply = GrowingReply(remote.tokenizer.encode(prompt), params)
            options = SessionOptions(max_tokens=len(reply.prompt_ids) + tokens, prefill_chunk_rows=8)
            began, came_at = time.monotonic(), list[float]()
            try:
                async with swarm.session(remote.spec, options=options) as session:
                    opened_s.append(time.monotonic() - comes_at)
                    decoder = SessionDecoder(remote, session, keep=partial(_note, came_at))
                    async for _ in decoder.generate(reply):
                        pass
                    answer["lost"] = [name for event in session.failovers for name in event.lost]
            except ShoalError as error:
                answer["error"] = f"{type(error).__name__}: {error}"
            seconds.append(time.monotonic() - began)
    answer["seconds"] = statistics.median(seconds)
    answer["opened_s"] = max(opened_s, default=math.inf)
    answer["decoded_at"] = came_at[:1] + came_at[-1:]
    answer["tokens"] = reply.token_ids
    answer["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _say(answer)


def _note(came_at: list[float]) -> None:
    came_at.append(time.monotonic())


async def _record(ticket: str) -> ServerRecord:
    """What the server of a ticket says of itself."""
    async with AsyncClient([ticket], only="tls") as swarm:
        (record,) = swarm.records()
    return record


async def flood(ticket: str, lie: str) -> None:
    """Lie until the input ends, with the processor's time that others leave: a stranger computes on its own machine."""
    os.nice(19)
    async with HostileClient(ticket, await _record(ticket)) as stranger, telling(stranger, FLOODS[lie]):
        _say({})
        await asyncio.to_thread(sys.stdin.read)


async def greedy(ticket: str, hosts: int, keys: int, rows: int) -> None:
    """Clients at many addresses, with several keys each, that keep as many sessions as they get and compute without pause.

    Says in the end how many rows they had when.
    """
    record, counted, had = await _record(ticket), list[tuple[float, int]](), [0]
    async with contextlib.AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(HostileClient(ticket, record, crowd_host(at))) for at in range(hosts)]
        tasks = [asyncio.ensure_future(compute_greedily(one, keys, rows, had)) for one in crowd]
        await asyncio.sleep(GREED_BEGINS_S)
        _say({})
        ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
        while not ended.done():
            await asyncio.wait([ended], timeout=0.02)
            counted.append((time.monotonic(), had[0]))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _say({"rows": counted})


PARTIES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "server": server,
    "client": client,
    "flood": flood,
    "greedy": greedy,
}

if __name__ == "__main__":
    strict.strict_mode_environment()
    asyncio.run(PARTIES[sys.argv[1]](*json.loads(sys.argv[2])))
