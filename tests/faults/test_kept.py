"""A server's ticket after its server was started again."""

from __future__ import annotations

import signal
from pathlib import Path

from shoal.swarm.discovery.ticket import Ticket
from tests.faults.processes import SHOAL, ended, heard, running
from tests.swarms import NUM_BLOCKS

OPTIONS = ("--transport", "tls", "--memory", "128MB")


async def served(model: Path, home: Path, *options: str) -> tuple[Ticket, str]:
    """The ticket of a server that is started and ended, and what it said beside it."""
    async with running(SHOAL, "serve", str(model), *OPTIONS, *options, SHOAL_HOME=str(home)) as server:
        ticket = Ticket.parse(await heard(server))
        server.send_signal(signal.SIGTERM)
        code, _, err = await ended(server)
    assert code == 0, err
    return ticket, err


async def test_a_ticket_is_good_after_a_restart(tiny_model: Path, tmp_path: Path) -> None:
    """The terminal says so, and who can use it; a temporary server promises nothing."""
    first, said = await served(tiny_model, tmp_path)
    assert "on this machine alone" in said
    assert "good after a restart too" in said
    assert f"no other server has blocks 0:{NUM_BLOCKS}" in said
    again, _ = await served(tiny_model, tmp_path)
    assert again == first
    passing, said = await served(tiny_model, tmp_path, "--temporary")
    assert passing.peer != first.peer
    assert "good until this server stops" in said
