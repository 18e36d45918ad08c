"""Invites that were used, ran out, or were never given: no certificate comes of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shoal.protocol.messages import Redeem
from shoal.swarm.membership.credentials import parse_invite
from shoal.types import PeerId
from tests.attacks.membership.attackers import REFUSED, Honest, Outsider
from tests.private import PrivateServers
from tests.swarms import until


async def test_an_invite_used_twice(swarm: PrivateServers, honest: Honest) -> None:
    """Eight nodes bring one invite at the same time: one gets in, for good."""
    data = parse_invite(swarm.invite())[1]
    thieves = [Outsider(swarm) for _ in range(8)]
    async with honest.unharmed():
        heard = await asyncio.gather(*(thief.hears(Redeem(data)) for thief in thieves))
        losers = [thief for thief, answer in zip(thieves, heard, strict=True) if answer == REFUSED]
        assert len(losers) == 7
        await losers[0].learns_nothing(Redeem(data))
    for thief in thieves:
        await thief.transport.close()


async def test_an_expired_invite(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """It was good a second ago."""
    async with honest.unharmed():
        await outsider.learns_nothing(Redeem(parse_invite(swarm.invite(expires_s=-1))[1]))


async def test_a_revoked_invite(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """Nobody has used it yet, and nobody will."""
    invite, data = parse_invite(swarm.invite())
    async with honest.unharmed():
        swarm.revoke(invite.id.hex())
        first = swarm.servers[0].network.member
        assert first is not None
        await until(lambda: first.state.revocations.number == 1)
        await outsider.learns_nothing(Redeem(data))


async def test_an_invite_for_another_redeemer(swarm: PrivateServers, honest: Honest, outsider: Outsider) -> None:
    """A server that may not redeem does not, and one that may redeems only what names it."""
    to_second = parse_invite(swarm.invite(redeemer=swarm.servers[1]))[1]
    async with honest.unharmed():
        await outsider.learns_nothing(Redeem(to_second))
        to_first = parse_invite(swarm.invite())[1]
        assert await outsider.hears(Redeem(to_first), server=swarm.servers[1]) == REFUSED


async def test_forged_invites(swarm: PrivateServers, honest: Honest, outsider: Outsider, tmp_path: Path) -> None:
    """Changed, of another owner, of another owner in this one's name, of nobody."""
    sound = parse_invite(swarm.invite())[1]
    other = PrivateServers(swarm.model, tmp_path / "other")
    other.servers = swarm.servers
    foreign = parse_invite(other.invite())[1]
    now_ours = foreign.replace(other.swarm.encode(), swarm.swarm.encode())
    nobodys = foreign.replace(other.swarm.encode(), PeerId("01" + "00" * 31).encode())
    assert now_ours != foreign
    async with honest.unharmed():
        for data in (
            sound[:-1],
            sound[:70] + b"\0" + sound[71:],
            bytes(64) + sound[64:],
            foreign,
            now_ours,
            b"\1" + bytes(63) + nobodys[64:],
            b"",
        ):
            await outsider.learns_nothing(Redeem(data))
