"""`shoal drain`: have a server of one's own leave without dropping a session."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.output import AsJson, SwarmName, Transport, interruptible, print_json, private
from shoal.cli.terminal import say, waits_for

if TYPE_CHECKING:
    from shoal.swarm.identity import Identity
    from shoal.swarm.membership.storage import PrivateSwarm
    from shoal.transport.channel import Transport as Carrier


def drain(
    ticket: Annotated[str, typer.Argument(help="The server's ticket.")],
    identity: Annotated[
        Path | None,
        typer.Option(
            help="The server's key file (shoal serve --identity FILE); not needed with --swarm, nor for a server whose key "
            "this machine keeps."
        ),
    ] = None,
    swarm: SwarmName = "",
    transport: Transport = None,
    as_json: AsJson = False,
) -> None:
    """Order a server to take no new sessions, to let those it has move, and to leave. Its key is needed for that."""
    from shoal.errors import UsageError
    from shoal.server.server_place import kept_key
    from shoal.swarm.discovery.ticket import Ticket
    from shoal.swarm.identity import Identity
    from shoal.types import PeerId

    if identity is None and not swarm:
        identity = kept_key(PeerId(Ticket.parse(ticket).peer))
        if identity is None:
            raise UsageError(
                "this machine keeps no key of that server: give its key file (--identity), or its private swarm (--swarm)"
            )
    if identity is not None and not identity.is_file():
        raise UsageError(f"there is no key file {identity}")
    waits_for("asking the server to leave")
    key = Identity.load(identity) if identity is not None else None
    interruptible()
    deadline_s = asyncio.run(_order(ticket, key, private(swarm, ""), transport))
    if as_json:
        print_json({"leaving_within_s": deadline_s})
    else:
        say(f"the server leaves as soon as its sessions have moved, in {deadline_s:.0f} s at the latest")


async def _order(text: str, key: Identity | None, swarm: PrivateSwarm | None, transport: str | None) -> float:
    from shoal.clock import SYSTEM_CLOCK
    from shoal.errors import UsageError
    from shoal.protocol.messages import LEAVE, Leave
    from shoal.swarm.discovery.ticket import Ticket
    from shoal.swarm.membership.applicant import Applicant
    from shoal.transport.asking import ask
    from shoal.transport.dialler import Dialler
    from shoal.transport.local_node import make_transports

    ticket = Ticket.parse(text)
    applicant = Applicant(swarm, "server", SYSTEM_CLOCK, key) if swarm is not None else None
    identity = applicant.identity if applicant is not None else key
    assert identity is not None
    if identity.peer != ticket.peer:
        raise UsageError(f"the key is that of {identity.peer[:8]}, and the ticket that of {ticket.peer[:8]}")
    transports: Sequence[Carrier] = make_transports(identity.key, only=transport)
    try:
        if applicant is not None:
            transports = (await applicant.enter(transports)).transports
        dialler = Dialler(transports, only=transport)
        reply = await ask(dialler, (ticket.peer, ticket.addresses), LEAVE, Leave())
        return reply.message.deadline_s
    finally:
        for one in transports:
            await one.close()
