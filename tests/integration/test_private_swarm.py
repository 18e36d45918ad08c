"""A private swarm from its first invite to a revocation, over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli.main import make_app
from shoal.client.client import AsyncClient
from shoal.clock import SYSTEM_CLOCK, SystemClock
from shoal.engine.proof import numbers
from shoal.errors import InviteError, NetworkError, NotAMember, ShoalError, UsageError
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.membership.credentials import CERTIFICATE_LIFETIME_S, Certificate, sign_certificate
from shoal.swarm.membership.owner import Owner
from shoal.swarm.membership.storage import PrivateSwarm, StoredMembership, SwarmFolder
from shoal.types import Span
from tests.private import NAME, PrivateServers, private_swarm
from tests.swarms import until

ROWS = numbers(1, 5, 48)
ALL = Span(0, 6)


@pytest.fixture
async def swarm(tiny_model: Path, tmp_path: Path) -> AsyncIterator[PrivateServers]:
    """Two servers, each with one half of the blocks."""
    async with private_swarm(tiny_model, tmp_path, Span(0, 3), Span(3, 6)) as swarm:
        yield swarm


class ShiftedClock(SystemClock):
    """The machine's clock, so many seconds later."""

    def __init__(self, later_s: float) -> None:
        self.later_s = later_s

    def wall(self) -> float:
        """Later."""
        return super().wall() + self.later_s


async def answer(client: AsyncClient) -> list[list[float]]:
    """What all blocks make of some rows."""
    spec = await client.find_model()
    async with client.session(spec, max_tokens=8) as session:
        return (await session.step(ROWS)).tolist()


def owner(swarm: PrivateServers) -> Owner:
    """The owner's desk, as another process of the owner's machine would open it."""
    return Owner(SwarmFolder(NAME, swarm.folder / "owner"), SYSTEM_CLOCK)


def expire(swarm: PrivateServers, node: str) -> None:
    """Put an old certificate of a client's where its own was."""
    folder = SwarmFolder(NAME, swarm.folder / node).node("client")
    kept, now = folder.kept(), time.time()
    assert kept is not None
    peer = folder.identity().peer
    old = Certificate(swarm.swarm, peer, swarm.swarm, now - 2 * CERTIFICATE_LIFETIME_S, now - CERTIFICATE_LIFETIME_S)
    folder.keep(StoredMembership(kept.swarm, sign_certificate(old, swarm.owner), kept.peers))


async def test_an_invite_opens_the_swarm_and_is_needed_once(swarm: PrivateServers) -> None:
    """A client with an invite is served; the second time it needs none; one without is refused."""
    async with swarm.client("guest") as client:
        first = await answer(client)
        peer = client.identity.peer
    async with swarm.client("guest", invite="") as client:
        assert client.identity.peer == peer
        assert await answer(client) == first
    with pytest.raises(NetworkError, match="only members"):
        async with AsyncClient([swarm.servers[0].ticket], only="tls"):
            pass


async def test_an_invite_alone_is_enough_from_python(
    swarm: PrivateServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`AsyncClient(invite=…)` keeps its membership in $SHOAL_HOME, so the same line works again."""
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "shoal-home"))
    text = swarm.invite()
    for _ in range(2):
        async with AsyncClient(invite=text, only="tls") as client:
            assert await answer(client)
    kept = SwarmFolder(NAME, tmp_path / "shoal-home").node("client").kept()
    assert kept is not None
    assert kept.swarm == swarm.swarm


async def test_a_revoked_client_loses_its_session_everywhere(swarm: PrivateServers) -> None:
    """The owner's command is enough: running servers find the list, tell each other, and close what the client has."""
    async with swarm.client("out") as client, swarm.client("stays") as other:
        spec = await client.find_model()
        async with other.session(spec, max_tokens=32) as staying:
            with contextlib.suppress(ShoalError):
                async with client.session(spec, max_tokens=32) as session:
                    await session.step(ROWS)
                    owner(swarm).revoke(client.identity.peer)
                    await until(lambda: all(server.status().sessions == 1 for server in swarm.servers))
                    with pytest.raises(ShoalError):
                        await asyncio.wait_for(session.step(ROWS), 15)
            assert (await staying.step(ROWS)).shape == (5, 48)
    with pytest.raises(ShoalError):
        async with swarm.client("out", invite=""):
            pass


async def test_a_revoked_invite_revokes_who_came_by_it(swarm: PrivateServers) -> None:
    """Also a certificate renewed since then."""
    text = owner(swarm).invite(3600)
    async with swarm.client("out", invite=text) as client:
        await answer(client)
        owner(swarm).revoke(owner(swarm).issued()[0].invite.id.hex()[:10])
        await until(lambda: swarm.servers[1].network.member.is_revoked(client.identity.peer))  # type: ignore[union-attr]
        with pytest.raises(NetworkError, match="only members"):
            await client.refresh()
        await client.close()
    with pytest.raises(NotAMember):
        async with AsyncClient(invite=swarm.private("another", text), only="tls"):
            pass


async def test_a_revoked_server_is_avoided(swarm: PrivateServers) -> None:
    """A client's next session goes elsewhere, and the revoked server is in nobody's directory."""
    async with contextlib.AsyncExitStack() as stack:
        third = await swarm.serve(stack, Span(3, 6), "server-2", invite=swarm.invite())
        out = swarm.servers[1].identity.peer
        async with swarm.client() as client:
            expected = await answer(client)
            owner(swarm).revoke(out)
            await until(lambda: all(server.directory.get(out) is None for server in (swarm.servers[0], third)))
            await until(lambda: third.directory.get(third.identity.peer) is not None)
            await client.refresh()
            assert client.directory.get(out) is None
            await until(lambda: swarm.servers[0].directory.get(third.identity.peer) is not None)
            await client.refresh()
            assert await answer(client) == expected


async def test_a_session_moves_away_from_a_revoked_server(swarm: PrivateServers) -> None:
    """In the middle of a session: its hops drop the server, another one takes its place, and the rows are the same."""
    async with contextlib.AsyncExitStack() as stack:
        await swarm.serve(stack, Span(3, 6), "server-2", invite=swarm.invite())
        async with swarm.client() as client:
            spec = await client.find_model()
            async with client.session(spec, max_tokens=32) as session:
                expected = [(await session.step(ROWS)).tolist(), (await session.step(ROWS)).tolist()]
            async with client.session(spec, max_tokens=32) as session:
                rows = [(await session.step(ROWS)).tolist()]
                out = session.route[-1].peer
                server = next(one for one in swarm.servers if one.identity.peer == out)
                owner(swarm).revoke(out)
                await until(lambda: swarm.servers[0].network.member.is_revoked(out))  # type: ignore[union-attr]
                await until(lambda: not len(server.sessions) or session.route[-1].peer != out)
                rows.append((await session.step(ROWS)).tolist())
                assert session.route[-1].peer != out
                assert rows == expected


async def test_the_swarm_is_found_without_its_owner(tiny_model: Path, tmp_path: Path) -> None:
    """A client that has met another server comes back through that one."""
    async with contextlib.AsyncExitStack() as stack:
        async with private_swarm(tiny_model, tmp_path, ALL) as swarm:
            await swarm.serve(stack, ALL, "helper", invite=swarm.invite())
            await until(lambda: len(swarm.servers[0].directory.records()) == 2)
            async with swarm.client("guest") as client:
                await until(lambda: len(client.records()) == 2)
                expected = await answer(client)
        async with swarm.client("guest", invite="") as client:
            assert await answer(client) == expected


async def test_a_delegate_redeems_while_the_owner_is_away(tiny_model: Path, tmp_path: Path) -> None:
    """It serves invites that name it and renews; the owner's server is not needed for either."""
    async with contextlib.AsyncExitStack() as stack:
        async with private_swarm(tiny_model, tmp_path, ALL) as swarm:
            first = await swarm.serve(stack, ALL, "helper", invite=swarm.invite())
            delegation = owner(swarm).delegate(first.ticket, 3600)
            await first.__aexit__(None, None, None)
            helper = await swarm.serve(stack, ALL, "helper", delegation=delegation)
        async with swarm.client("guest", invite=swarm.invite(redeemer=helper)) as client:
            assert await answer(client)
        expire(swarm, "guest")
        async with swarm.client("guest", invite="") as client:
            assert await answer(client)


async def test_certificates_renew_themselves(tiny_model: Path, tmp_path: Path) -> None:
    """A node whose certificate has passed its half-life gets the next one from the owner's node."""
    async with private_swarm(tiny_model, tmp_path, ALL) as swarm:
        async with swarm.client("guest") as client:
            assert await answer(client)
        node = SwarmFolder(NAME, tmp_path / "guest").node("client")
        first = node.kept()
        later = ShiftedClock(0.6 * CERTIFICATE_LIFETIME_S)
        async with swarm.client("guest", clock=later):
            await until(lambda: node.kept() != first)


async def test_a_machine_that_was_off_comes_back(tiny_model: Path, tmp_path: Path) -> None:
    """An expired certificate is renewed at the start, within the window."""
    async with private_swarm(tiny_model, tmp_path, ALL) as swarm:
        async with swarm.client("guest") as client:
            peer = client.identity.peer
        folder = SwarmFolder(NAME, tmp_path / "guest").node("client")
        kept = folder.kept()
        assert kept is not None
        from shoal.swarm.membership.credentials import Certificate, sign_certificate

        now = time.time()
        old = Certificate(
            swarm.swarm, peer, swarm.swarm, now - 2 * CERTIFICATE_LIFETIME_S, now - CERTIFICATE_LIFETIME_S
        )
        folder.keep(StoredMembership(kept.swarm, sign_certificate(old, swarm.owner), kept.peers))
        async with swarm.client("guest", invite="") as client:
            assert await answer(client)


async def test_what_cannot_be_joined(swarm: PrivateServers, tmp_path: Path) -> None:
    """No invite, an expired one, a used one, one whose redeemer is away: each says what to do."""
    used = swarm.invite()
    async with swarm.client("first", invite=used):
        pass
    for private, error in (
        (PrivateSwarm(name=NAME, home=tmp_path / "nobody"), UsageError),
        (swarm.private("late", swarm.invite(expires_s=-1)), InviteError),
        (swarm.private("second", used), NotAMember),
        (swarm.private("far", swarm.invite(addresses=("tls://127.0.0.1:1",))), NetworkError),
        (PrivateSwarm(invite=used[:-9], home=tmp_path / "cut"), InviteError),
        (PrivateSwarm(home=tmp_path / "none"), UsageError),
    ):
        with pytest.raises(error):
            async with AsyncClient(invite=private, only="tls"):
                pass


async def test_another_swarm_of_the_same_name(swarm: PrivateServers, tiny_model: Path, tmp_path: Path) -> None:
    """Its invite needs another name here."""
    async with swarm.client("guest"):
        pass
    async with private_swarm(tiny_model, tmp_path / "other", ALL) as other:
        with pytest.raises(InviteError, match="another swarm"):
            async with AsyncClient(invite=swarm.private("guest", other.invite()), only="tls"):
                pass


def test_the_owners_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """create, invite, delegate, revoke and show, without a network."""
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    runner, app = CliRunner(), make_app()

    def run(*words: str) -> dict[str, object]:
        result = runner.invoke(app, ["swarm", *words, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout.splitlines()[-1])

    created = run("create", NAME)
    assert (tmp_path / "swarms" / NAME / "owner.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="first"):
        run("invite", NAME)
    redeemer = str(Ticket("a" * 64, ("tls://127.0.0.1:1",)))
    made = run("invite", NAME, "--redeemer", redeemer, "--expires", "2h")
    assert made["redeemer"] == "a" * 64
    assert str(run("delegate", NAME, "b" * 64)["delegation"]).startswith("shoal-delegation1-")
    assert run("revoke", NAME, str(made["id"])[:9])["invites"] == [made["id"]]
    assert run("revoke", NAME, "c" * 64)["number"] == 2
    for wrong in ("c" * 63, "abc", "g" * 64, ""):
        with pytest.raises(UsageError):
            run("revoke", NAME, wrong)
    shown = run("show", NAME)
    assert shown["swarm"] == created["swarm"]
    assert shown["revoked_nodes"] == ["c" * 64]
    with pytest.raises(UsageError):
        run("show", "nothing")
    with pytest.raises(UsageError):
        run("invite", "nothing")
