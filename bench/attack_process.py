"""One party of `bench attacks`, in a process of its own: `server` [model, blocks, lie, peers], or `client` [model, tickets,
distrusted, prompt, tokens]. It says one line of JSON."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable, Coroutine
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
from shoal.types import Span
from tests.attacks.hostile_server import LIES, lying


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


async def server(model: str, blocks: str, lie: str, peers: list[str]) -> None:
    """Serve until the input ends."""
    options = ServeOptions(
        model=model,
        blocks=Span.parse(blocks),
        peers=tuple(peers),
        name=lie or f"honest {blocks}",
        transport="tls",
        memory_bytes=128 << 20,
    )
    async with Server(options, wrap=lying(LIES[lie]()) if lie else None) as served:
        _say({"ticket": served.ticket, "peer": served.identity.peer})
        await asyncio.to_thread(sys.stdin.read)


async def client(model: str, tickets: list[str], distrusted: list[str], prompt: str, tokens: int) -> None:
    """A greedy reply; servers in `distrusted` come after all others."""
    answer: dict[str, Any] = {}
    async with AsyncClient(tickets, only="tls") as swarm, await open_model(swarm, model) as remote:
        for record in swarm.records():
            if record.peer in distrusted:
                swarm.caught(record)
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        reply = GrowingReply(remote.tokenizer.encode(prompt), params)
        options = SessionOptions(max_tokens=len(reply.prompt_ids) + tokens, prefill_chunk_rows=8)
        began = time.monotonic()
        try:
            async with swarm.session(remote.spec, options=options) as session:
                async for _ in SessionDecoder(remote, session).generate(reply):
                    pass
                lost = [name for event in session.failovers for name in event.lost]
                answer["lost"] = lost
        except ShoalError as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        answer["seconds"] = time.monotonic() - began
    answer["tokens"] = reply.token_ids
    answer["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    _say(answer)


PARTIES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"server": server, "client": client}

if __name__ == "__main__":
    strict.strict_mode_environment()
    asyncio.run(PARTIES[sys.argv[1]](*json.loads(sys.argv[2])))
