"""What a caller may ask of a session."""

from __future__ import annotations

import msgspec

from shoal.engine.batch_queue import PREFILL_CHUNK_ROWS
from shoal.errors import UsageError
from shoal.protocol.messages import MAX_POSITION, RowCodec
from shoal.swarm.routing.route_planner import RouteOptions

PATIENCE_S = 60.0
"""How long a session waits by default for servers of blocks that have none."""


class SessionOptions(msgspec.Struct, frozen=True):
    """What a caller may ask of a session.

    `keep_s`: how long servers keep it without its client. `patience_s`: how long a step waits while blocks have no server.
    `prefill_chunk_rows`: rows of one frame of a prefill; small, so that all hops of a route work at once.
    `exact`: wait rather than go on with arithmetic that gives other bits. `redundancy` 2: servers stand by for every hop.
    `route`: which servers to use and to avoid; its `num_tokens`, `numerics` and `broken_links` are the session's own affair.
    """

    max_tokens: int = 4096
    keep_s: float = 30.0
    row_codec: RowCodec = "fp32"
    prefill_chunk_rows: int = PREFILL_CHUNK_ROWS
    patience_s: float = PATIENCE_S
    exact: bool = False
    redundancy: int = 1
    route: RouteOptions = RouteOptions()

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= MAX_POSITION:
            raise UsageError(f"max_tokens must be from 1 to {MAX_POSITION}, not {self.max_tokens}")
        if not 1 <= self.prefill_chunk_rows <= 1024:
            raise UsageError(f"prefill_chunk_rows must be from 1 to 1024, not {self.prefill_chunk_rows}")
        if self.redundancy not in (1, 2):
            raise UsageError(f"redundancy must be 1 or 2, not {self.redundancy}")
        if not self.patience_s >= 0:
            raise UsageError(f"patience_s must not be negative, not {self.patience_s}")
        if not 0 < self.keep_s <= 86_400:
            raise UsageError(f"keep_s must be positive and at most a day, not {self.keep_s}")
