"""Where a session's routes come from, and what every hop of it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from shoal.client.client_options import SessionOptions
from shoal.protocol.row_codec import row_bytes
from shoal.swarm.directory.records import ServerRecord, SignedRecord
from shoal.swarm.routing.hop_costs import RoundTrips
from shoal.transport.dialler import Dialler
from shoal.types import ModelSpec, PeerId, Span


class Planner(Protocol):
    """Knows the swarm."""

    @property
    def dialler(self) -> Dialler:
        """How servers are reached."""
        ...

    def candidates(self, model: ModelSpec) -> tuple[Sequence[ServerRecord], RoundTrips]:
        """Records of the servers that may be asked, and the round trips to those that were."""
        ...

    def record(self, peer: PeerId) -> SignedRecord:
        """A server's record as it was signed; raises NoRoute when it has expired."""
        ...

    async def refresh(self) -> None:
        """Ask the swarm for news; raises NetworkError when nobody answers."""
        ...

    def failed(self, record: ServerRecord) -> None:
        """The server of this record did not answer: not to be chosen until it does, or says something new."""
        ...

    def caught(self, record: ServerRecord) -> None:
        """The server of this record did not do what it says it does: others come first, whatever it says."""
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
