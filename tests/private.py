"""A private swarm of the tiny model in this process, over real TLS on loopback, and what its owner may sign."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from shoal.client.client import AsyncClient
from shoal.clock import SYSTEM_CLOCK
from shoal.server.serve_options import ServeOptions
from shoal.server.server import Server
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.membership.credentials import Invite, sign_invite
from shoal.swarm.membership.owner import Owner
from shoal.swarm.membership.storage import PrivateSwarm, SwarmFolder
from shoal.types import Span

NAME = "home"


class PrivateServers:
    """The servers of a private swarm; the first is the owner's. Every node keeps its files in a folder of its own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.owner = SwarmFolder(NAME, folder / "owner").create_owner()
        self.servers: list[Server] = []

    @property
    def swarm(self) -> str:
        """The swarm's id."""
        return self.owner.peer

    def private(self, node: str, invite: str = "", delegation: str = "") -> PrivateSwarm:
        """What this node of the test is in the swarm."""
        return PrivateSwarm(name=NAME, invite=invite, delegation=delegation, home=self.folder / node)

    def invite(self, expires_s: float = 3600.0, redeemer: Server | None = None, **changes: object) -> str:
        """A fresh invite, to be redeemed at the owner's server unless told otherwise."""
        ticket = Ticket.parse((redeemer or self.servers[0]).ticket)
        fields: dict[str, object] = {
            "swarm": self.swarm,
            "id": os.urandom(16),
            "redeemer": ticket.peer,
            "addresses": ticket.addresses,
            "expires_at": time.time() + expires_s,
            "name": NAME,
            **changes,
        }
        return sign_invite(Invite(**fields), self.owner)  # type: ignore[arg-type]  # a test's fields are what it says

    def revoke(self, what: str) -> None:
        """As the owner's command does it, in a process of its own."""
        Owner(SwarmFolder(NAME, self.folder / "owner"), SYSTEM_CLOCK).revoke(what)

    async def serve(self, stack: contextlib.AsyncExitStack, span: Span, node: str, **private: str) -> Server:
        """One more server, admitted by an invite unless it is the owner's."""
        config = ServeOptions(
            model=str(self.model),
            blocks=span,
            name=node,
            transport="tls",
            memory_bytes=128 << 20,
            private=self.private(node, **private),
        )
        server = await stack.enter_async_context(Server(config))
        self.servers.append(server)
        return server

    def client(self, node: str = "client", invite: str | None = None, **options: object) -> AsyncClient:
        """A client that is let in by a fresh invite, or comes back with what it has kept."""
        if invite is None:
            kept = (self.folder / node).exists()
            invite = "" if kept else self.invite()
        return AsyncClient(invite=self.private(node, invite), only="tls", **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def private_swarm(model: Path, folder: Path, *spans: Span) -> AsyncIterator[PrivateServers]:
    """The owner's server and one more for each further span."""
    async with contextlib.AsyncExitStack() as stack:
        swarm = PrivateServers(model, folder)
        await swarm.serve(stack, spans[0], "owner")
        for index, span in enumerate(spans[1:], 1):
            await swarm.serve(stack, span, f"server-{index}", invite=swarm.invite())
        yield swarm
