"""Blocks that a server serves in tests: no weights, no network, and a thread that computes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import torch

from shoal.kv.pages import PageAllocator
from shoal.protocol.messages import Numerics
from shoal.protocol.rows import Rows
from shoal.server.accounts import Accounts
from shoal.server.hosting.span_loading import LoadedBlocks
from shoal.server.sessions.redirector import Redirector
from shoal.server.sessions.session_service import SessionService, SpanInfo
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.identity import Identity
from shoal.transport.dialler import Dialler
from shoal.types import ModelSpec, Span
from tests.records import FINGERPRINT
from tests.support.virtual_clock import VirtualClock

MODEL = ModelSpec("tiny", FINGERPRINT, 8, 2)
HELD = Span(2, 6)


def span_info(span: Span = HELD) -> SpanInfo:
    """What is said of blocks of the tiny model."""
    return SpanInfo(
        MODEL,
        span,
        Numerics("torch", "0" * 16, "float32"),
        tuple(f"weights {block}" for block in span.blocks()),
        "someone/tiny",
        "main",
        b"{}",
        max_tokens=100,
        journal_tokens=40,
        row_codecs=("fp32", "bf16"),
    )


class Runner:
    """Gives each row back as it came."""

    any_thread = True

    def __init__(self, span: Span, pages: int = 64) -> None:
        self.span = span
        self.cache = SimpleNamespace(pages=PageAllocator(pages))

    def open(self, session: str, span: Span, max_tokens: int, client: str) -> None:
        """StepRunner."""
        self.cache.pages.open(session, span, max_tokens)

    def truncate(self, session: str, num_tokens: int) -> None:
        """StepRunner."""

    def close(self, session: str) -> None:
        """StepRunner."""
        self.cache.pages.close(session)

    def step(self, batch: Sequence[Rows], pauses: Mapping[str, int]) -> list[torch.Tensor]:
        """StepRunner."""
        return [rows.hidden_states for rows in batch]


def loaded(span: Span = HELD) -> LoadedBlocks:
    """As they come from the disk."""
    return LoadedBlocks(Runner(span), span_info(span), 16.0, 0.25)  # type: ignore[arg-type]  # a runner by its shape


class Network:
    """A server's side of a network without other nodes; it remembers what was published and told."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.identity = Identity.generate()
        self.throttle = None
        self.redirector = Redirector(self.identity, Dialler([]), self.clock, lambda: ("tls://127.0.0.1:1",))
        self.published: list[ServerRecord] = []
        self.services: list[SessionService | None] = []
        self.measured: list[Span] = []
        self.told = 0
        self.dispatcher = SimpleNamespace(answer_by=self.services.append, settled=lambda frames: None)
        self.accounts = Accounts()
        self.gossip = SimpleNamespace(tell_some=self._tell, others=lambda fingerprint: [])
        self.peer_latency = SimpleNamespace(measure=self._measure)

    async def _tell(self) -> None:
        self.told += 1

    async def _measure(self, span: Span, records: Any) -> None:
        self.measured.append(span)

    def publish(self, record: ServerRecord) -> ServerRecord:
        """Network."""
        self.published.append(msgspec.structs.replace(record, sequence=len(self.published) + 1))
        return self.published[-1]
