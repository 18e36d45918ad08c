"""A tiny model and whole swarms of it, in this process, over real TLS on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from shoal.client.client import AsyncClient
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.types import Span
from tests.support.tiny_models import tiny_llama, tiny_tokenizer

NUM_BLOCKS = 6


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of six blocks with a byte tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_llama(folder, num_hidden_layers=NUM_BLOCKS, vocab_size=258, max_position_embeddings=512)
    tiny_tokenizer(folder, vocab_size=258)
    return folder


class Swarm:
    """Servers and how to join them; `join(span)` starts one more, with other options if they are given."""

    def __init__(self, servers: list[Server], join: Callable[..., Awaitable[Server]]) -> None:
        self.servers = servers
        self.join = join

    @property
    def ticket(self) -> str:
        """Reaches the last server that joined."""
        return self.servers[-1].ticket

    def client(self, **options: object) -> AsyncClient:
        """A client that knows one ticket."""
        return AsyncClient([self.ticket], only="tls", **options)


SwarmMaker = Callable[..., contextlib.AbstractAsyncContextManager[Swarm]]


@pytest.fixture
def swarm_of(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> SwarmMaker:
    """`async with swarm_of(Span(0, 3), Span(3, 6)) as swarm`: one server per span; options as for ServeOptions."""
    monkeypatch.setenv("SHOAL_MODELS", str(tiny_model.parent))  # clients find the model by the name that servers tell

    @contextlib.asynccontextmanager
    async def make(*spans: Span, **options: object) -> AsyncIterator[Swarm]:
        async with contextlib.AsyncExitStack() as stack:
            servers: list[Server] = []
            identities = tmp_path_factory.mktemp("identities")

            async def join(span: Span, **more: object) -> Server:
                config = ServeOptions(
                    **{
                        "model": str(tiny_model),
                        "blocks": span,
                        "peers": (servers[0].ticket,) if servers else (),
                        "name": f"server {len(servers)}",
                        "transport": "tls",
                        "memory_bytes": 128 << 20,
                        "identity": identities / str(len(servers)),
                        **options,
                        **more,
                    }
                )
                servers.append(await stack.enter_async_context(Server(config)))
                return servers[-1]

            for span in spans:
                await join(span)
            yield Swarm(servers, join)

    return make


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for something that must come about; TimeoutError if it does not."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)  # other processes and threads set no event of ours
