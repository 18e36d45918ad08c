"""A real model through servers in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.client.completion import GrowingReply
from shoal.client.decoder import SessionDecoder
from shoal.client.remote_model import RemoteModel, open_model
from shoal.model.nn.sampling_params import SamplingParams
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.types import Span

NEAR_TIE = 1e-3
"""Logits that are closer than this to each other may be ordered otherwise by rounding."""


@contextlib.asynccontextmanager
async def swarm(model: str, *spans: Span, max_session_tokens: int = 512) -> AsyncIterator[RemoteModel]:
    """Servers of these spans and a client's model."""
    async with contextlib.AsyncExitStack() as stack:
        tickets: tuple[str, ...] = ()
        for span in spans:
            config = ServeOptions(
                model=model,
                blocks=span,
                peers=tickets[:1],
                transport="tls",
                memory_bytes=1 << 30,
                max_session_tokens=max_session_tokens,
            )
            server = await stack.enter_async_context(Server(config))
            tickets += (server.ticket,)
        client = await AsyncClient(tickets[:1], only="tls").__aenter__()
        yield await stack.enter_async_context(await open_model(client, model))


async def greedy(model: RemoteModel, prompt_ids: list[int], count: int, chunk: int = 64) -> list[int]:
    """A greedy reply's tokens."""
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    result = GrowingReply(prompt_ids, params)
    options = SessionOptions(max_tokens=len(prompt_ids) + count, prefill_chunk_rows=chunk)
    async with model.client.session(model.spec, options=options) as session:
        async for _ in SessionDecoder(model, session).generate(result):
            pass
    return result.token_ids
