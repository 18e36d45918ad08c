"""`shoal join`: remember a swarm under a name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.output import AsJson, Transport, interruptible, print_json
from shoal.cli.terminal import counted, say, waits_for
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.client.client import AsyncClient


def join(
    ticket: Annotated[str, typer.Argument(help="A member's ticket, or an invite to a private swarm.")],
    name: Annotated[str, typer.Option("--as", help="What the swarm is called on this machine.")] = "",
    transport: Transport = None,
    as_json: AsJson = False,
) -> None:
    """Remember a swarm: commands find it by --swarm NAME, or without that where it is the only one."""
    from shoal.client.client import AsyncClient
    from shoal.swarm.discovery.address_book import AddressBook
    from shoal.swarm.membership.credentials import INVITE_WORD
    from shoal.swarm.membership.storage import PrivateSwarm, SwarmFolder

    invited = ticket.strip().startswith(INVITE_WORD)
    if not name and not invited:
        raise UsageError("the swarm needs a name: --as NAME")
    if name:
        SwarmFolder(name)  # raises for what cannot be one
    private = PrivateSwarm(name=name, invite=ticket.strip()) if invited else None
    client = AsyncClient(() if invited else (ticket,), invite=private, only=transport)
    waits_for(lambda: str(client.activity) or "starting")
    interruptible()
    models, called = asyncio.run(_meet(client))
    if not invited:
        book = AddressBook()
        book.refresh(name, [ticket.strip()], client.records())
    if as_json:
        print_json({"name": name or called, "models": models})
        return
    served = ", ".join(models) or "nothing"
    say(f"{name or called} is remembered ({counted(len(client.records()), 'server')}; it serves: {served})")
    say(f'next     shoal generate "Hello" --swarm {name or called}')


async def _meet(client: AsyncClient) -> tuple[list[str], str]:
    """The models that the swarm serves, and the name of a private one."""
    async with client:
        return sorted({record.model.name for record in client.records()}), client.private_swarm or ""
