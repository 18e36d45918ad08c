"""`shoal drain`: have a server of one's own leave without dropping a session."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.output import AsJson, Transport, console, print_json

if TYPE_CHECKING:
    from shoal.swarm.identity import Identity


def drain(
    ticket: Annotated[str, typer.Argument(help="The server's ticket.")],
    identity: Annotated[Path, typer.Option(help="The server's key file (shoal serve --identity FILE).")],
    transport: Transport = None,
    as_json: AsJson = False,
) -> None:
    """Order a server to take no new sessions, to let those it has move, and to leave. Whoever has its key may do that."""
    from shoal.errors import UsageError
    from shoal.swarm.identity import Identity

    if not identity.is_file():
        raise UsageError(f"there is no key file {identity}")
    deadline_s = asyncio.run(_order(ticket, Identity.load(identity), transport))
    if as_json:
        print_json({"leaving_within_s": deadline_s})
    else:
        console.print(f"the server leaves as soon as its sessions have moved, in {deadline_s:.0f} s at the latest")


async def _order(text: str, identity: Identity, transport: str | None) -> float:
    from shoal.errors import UsageError
    from shoal.net.dial import Dialler
    from shoal.net.framed import FrameChannel
    from shoal.net.node import make_transports
    from shoal.swarm.discovery.ticket import Ticket
    from shoal.types import PeerId
    from shoal.wire.messages import Leave, Leaving

    ticket = Ticket.parse(text)
    if identity.peer != ticket.peer:
        raise UsageError(f"the key is that of {identity.peer[:8]}, and the ticket that of {ticket.peer[:8]}")
    transports = make_transports(identity.key, only=transport)
    try:
        dialler = Dialler(transports, only=transport)
        async with FrameChannel(await dialler.dial(PeerId(ticket.peer), ticket.addresses)) as channel:
            await channel.send(Leave())
            leaving, _ = await channel.expect(Leaving)
            return leaving.deadline_s
    finally:
        for one in transports:
            await one.close()
