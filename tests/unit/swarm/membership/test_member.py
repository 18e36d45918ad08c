"""A node of a private swarm keeps its membership, whatever happens to its files and to those it asks."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import NetworkError
from shoal.swarm.directory.directory import Directory
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.swarm.membership import member as module
from shoal.swarm.membership.member import POLL_S, Member
from shoal.swarm.membership.owner import Owner
from shoal.swarm.membership.storage import PrivateSwarm, SwarmFolder
from shoal.transport.channel import Channel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from tests.support.virtual_clock import VirtualClock


async def test_a_redeemer_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks it is told so in the end; without that its own keeping would stop for good."""
    monkeypatch.setattr(module, "ASK_S", 0.05)
    network, silent = MemoryNetwork(), Identity.generate()

    async def says_nothing(channel: Channel) -> None:
        await asyncio.Event().wait()

    listening = MemoryTransport(silent.peer, network)
    await listening.listen(says_nothing)
    folder = SwarmFolder("home", tmp_path / "owner")
    folder.create_owner()
    text = Owner(folder, SYSTEM_CLOCK).invite(3600.0, Ticket(silent.peer, (f"memory://{silent.peer}",)))
    node = Member(PrivateSwarm(invite=text, home=tmp_path / "node"), "client", SYSTEM_CLOCK)
    try:
        async with asyncio.timeout(5.0):
            with pytest.raises(NetworkError, match="has not answered"):
                await node.enter([MemoryTransport(node.identity.peer, network)])
    finally:
        await listening.close()


async def test_a_damaged_list_does_not_end_the_keeping(tmp_path: Path) -> None:
    """The list in memory goes on to hold, and the next good one is taken."""
    clock = VirtualClock()
    folder = SwarmFolder("home", tmp_path)
    folder.create_owner()
    node = Member(PrivateSwarm(name="home", home=tmp_path), "server", clock)
    await node.enter([])
    spread: list[int] = []

    async def tell() -> None:
        spread.append(node.state.revocations.number)

    keeping = asyncio.create_task(node.keep(Directory(clock), tell))
    try:
        await clock.advance(POLL_S)
        folder.keep_revocations(b"nonsense")
        await clock.advance(2 * POLL_S)
        assert not keeping.done()
        (folder.path / "revocations").unlink()
        Owner(folder, clock).revoke(Identity.generate().peer)
        await clock.advance(2 * POLL_S)
        assert spread == [1]
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
