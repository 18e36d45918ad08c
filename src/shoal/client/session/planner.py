"""Where a session's routes come from, and what every hop of it is asked for."""

from __future__ import annotations

from typing import Protocol

import msgspec

from shoal.client.options import SessionOptions
from shoal.protocol.row_codec import row_bytes
from shoal.swarm.directory.records import ServerRecord, SignedRecord
from shoal.swarm.routing.route_planner import RouteOptions
from shoal.transport.dialler import Dialler
from shoal.types import Hop, ModelSpec, PeerId, Span


class Planner(Protocol):
    """Knows the swarm."""

    @property
    def dialler(self) -> Dialler:
        """How servers are reached."""
        ...

    def route(
        self, model: ModelSpec, span: Span, options: RouteOptions, avoid: frozenset[str]
    ) -> list[tuple[Hop, SignedRecord]]:
        """Hops over a span, none of them at the servers in `avoid`; raises NoRoute."""
        ...

    async def refresh(self) -> None:
        """Ask the swarm for news; raises NetworkError when nobody answers."""
        ...

    def failed(self, record: ServerRecord) -> None:
        """Who said this did not answer: not to be chosen until it does, or says something new."""
        ...


class SessionSpec(msgspec.Struct, frozen=True):
    """Whose session this is, of which blocks, and what is asked of it. `resumed`: how often a new process took it up."""

    model: ModelSpec
    span: Span
    me: PeerId
    options: SessionOptions
    resumed: int = 0

    @property
    def row_bytes(self) -> int:
        """Of a row on the wire."""
        return row_bytes(self.options.row_codec, self.model.hidden_size)
