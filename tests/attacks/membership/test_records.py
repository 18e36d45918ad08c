"""An insider hands out records that are forged, replayed, expired or made up: none is taken."""

from __future__ import annotations

import asyncio
import os
import time

from shoal.client.client import AsyncClient
from shoal.server.server import Server
from shoal.swarm.directory.records import sign_record
from shoal.swarm.identity import Identity
from shoal.types import Span
from tests.attacks.membership.attackers import Honest, altered, certificate, own_certificate, own_proof, push
from tests.private import PrivateServers
from tests.swarms import until

NOWHERE = ("tls://127.0.0.1:9",)


def unmoved(first: Server, second: Server) -> bool:
    """Whether the first server still holds what the second really says."""
    held = first.directory.get(second.identity.peer)
    return held is not None and held.record == second.record


async def test_forged_records(swarm: PrivateServers, honest: Honest) -> None:
    """A record in a server's name, which leads to the insider, is dropped and counted."""
    first, second = swarm.servers
    async with honest.unharmed(), swarm.client("insider") as insider:
        mine = altered(second.record, sequence=second.record.sequence + 100, addresses=NOWHERE)
        forged = sign_record(mine, insider.identity).data
        genuine = sign_record(second.record, second.identity).data
        for data in (forged, genuine[:64] + forged[64:], os.urandom(200), b"", forged + bytes(1000)):
            await push(insider, first, (data, own_proof(second)))
        await until(lambda: first.directory.dropped["invalid"] == 5)
        assert unmoved(first, second)


async def test_replayed_records(swarm: PrivateServers, honest: Honest) -> None:
    """A server's own older record, with an address that it has left, does not replace the newer one."""
    first, second = swarm.servers
    older = altered(second.record, sequence=second.record.sequence - 1, addresses=NOWHERE)
    async with honest.unharmed(), swarm.client("insider") as insider:
        await push(insider, first, (sign_record(older, second.identity).data, own_proof(second)))
        await until(lambda: first.directory.dropped["old"] == 1)
        assert unmoved(first, second)


async def test_expired_records(swarm: PrivateServers, honest: Honest) -> None:
    """A record that was true, and ones that claim to be from tomorrow or to live for ever."""
    first, second = swarm.servers
    now, later = time.time(), second.record.sequence + 100
    times = ((now - 400, now - 100), (now + 86_400, now + 86_700), (now, now + 86_400))
    records = [altered(second.record, sequence=later, issued_at=start, expires_at=stop) for start, stop in times]
    async with honest.unharmed(), swarm.client("insider") as insider:
        signed = [sign_record(record, second.identity).data for record in records]
        await push(insider, first, *((data, own_proof(second)) for data in signed))
        await until(lambda: first.directory.dropped["invalid"] == 3)
        assert unmoved(first, second)


async def lure(insider: AsyncClient, swarm: PrivateServers, address: str) -> None:
    """Hundreds of servers that do not exist promise everything; each certificate is somebody else's, or the insider's."""
    first, second = swarm.servers
    best = altered(first.record, span=Span(0, 6), addresses=(address,), decode_rows_per_s=1e6, sequence=1)
    proofs = (b"", own_certificate(insider), own_proof(second), os.urandom(300))
    entries = []
    for number in range(400):
        key = Identity.generate()
        forged = certificate(swarm, key.peer, key)
        data = sign_record(altered(best, peer=key.peer), key).data
        entries.append((data, (*proofs, forged)[number % 5]))
    await push(insider, first, *entries)


async def test_made_up_servers(swarm: PrivateServers, honest: Honest) -> None:
    """Only a certificate's own node gets into a directory, so nobody is lured and no stranger's address is dialled."""
    knocked: list[object] = []
    victim = await asyncio.start_server(lambda reader, writer: knocked.append(writer.close()), "127.0.0.1", 0)
    first = swarm.servers[0]
    async with victim, honest.unharmed(), swarm.client("insider") as insider:
        await lure(insider, swarm, f"tls://127.0.0.1:{victim.sockets[0].getsockname()[1]}")
        await until(lambda: first.directory.dropped["refused"] == 400)
        assert len(first.directory.records()) == 2
        async with swarm.client("newcomer") as newcomer:
            assert len(newcomer.records()) == 2
    assert not knocked


async def test_a_revoked_servers_record(swarm: PrivateServers, honest: Honest) -> None:
    """Its certificate has hours to go and its friend inside hands its record on; nobody takes it."""
    first = swarm.servers[0]
    out, key = Identity.generate(), swarm.owner
    record = altered(first.record, peer=out.peer, addresses=NOWHERE)
    entry = sign_record(record, out).data, certificate(swarm, out.peer, key)
    async with honest.unharmed(), swarm.client("insider") as insider:
        swarm.revoke(out.peer)
        await until(lambda: all(server.network.member.is_revoked(out.peer) for server in swarm.servers))  # type: ignore[union-attr]
        for server in swarm.servers:
            await push(insider, server, entry)
        await until(lambda: all(server.directory.dropped["refused"] == 1 for server in swarm.servers))
        assert all(server.directory.get(out.peer) is None for server in swarm.servers)
