"""The list of servers while some of them are gone."""

from __future__ import annotations

import contextlib
import socket
import time

from shoal.cli.status import model_views
from shoal.client.client import LOOKED_AT_S
from shoal.swarm.identity import Identity
from shoal.types import Span
from tests.faults.test_strangers import show
from tests.records import signed_record
from tests.swarms import NUM_BLOCKS, SwarmMaker

ALL = Span(0, NUM_BLOCKS)
SLOWER_S = 1.5
"""What a busy machine may add."""


async def test_all_are_looked_at_at_once(swarm_of: SwarmMaker) -> None:
    """Servers that accept and say nothing cost as much as one of them; each is told with its state."""
    async with swarm_of(ALL) as swarm:
        model, now = swarm.servers[0].record.model, time.time()
        with contextlib.ExitStack() as stack:
            for draining in (False, False, True):
                mute = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                address = f"tls://127.0.0.1:{mute.getsockname()[1]}"
                record = signed_record(
                    Identity.generate(),
                    (address,),
                    model=model,
                    span=ALL,
                    draining=draining,
                    issued_at=now - 100,
                    expires_at=now + 190,
                )
                await show(swarm, record)
            async with swarm.client() as client:
                began = time.monotonic()
                servers = await client.status()
                took_s = time.monotonic() - began
    assert took_s < LOOKED_AT_S + SLOWER_S
    [view] = model_views(servers)
    assert sorted(one.state for one in view.servers) == ["left", "silent", "silent", "up"]
    assert all(95 < one.heard_s < 130 for one in view.servers if one.state == "silent")
