"""A client of a swarm that exists in memory only: whom it asks, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

from shoal.client.client import MAX_CAUSE_CHARS, AsyncClient, _told
from shoal.client.client_options import SessionOptions
from shoal.client.served_models import REFRESH_S
from shoal.client.session.planner import SessionSpec
from shoal.errors import NetworkError, NoRoute, NotAMember, ServerFull, ShoalError, SpanError, TicketError, UsageError
from shoal.protocol.messages import FIRST, Describe, Description, GetStatus, Message, RecordDigest, Status
from shoal.protocol.refusals import refusal
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import sign_record
from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel, Transport
from shoal.transport.frame_channel import FrameChannel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.types import ModelSpec, PeerId, Span
from tests.records import FINGERPRINT, signed_record
from tests.support.virtual_clock import VirtualClock

MODEL = ModelSpec("tiny", FINGERPRINT, 12, 48)
LOAD = Status(1, 8, 0, 100, 200, 0.0, 0.0, 1.0)


class Member:
    """A server's node: it exchanges records and says what it serves, or why not (`refusal`)."""

    def __init__(self, swarm: MemorySwarm) -> None:
        self.identity = Identity.generate()
        self.directory = Directory(swarm.clock)
        self.transport = MemoryTransport(self.identity.peer, swarm.network)
        self.refusal: ShoalError | None = None
        self.describes = ""
        self.asked: list[Message] = []
        self._swarm = swarm

    @property
    def ticket(self) -> str:
        """Reaches it."""
        return str(Ticket(self.identity.peer, (f"memory://{self.identity.peer}",)))

    def serve(self, model: ModelSpec = MODEL) -> None:
        """It has something to say from now on."""
        now = self._swarm.clock.wall()
        record = signed_record(
            self.identity,
            (f"memory://{self.identity.peer}",),
            model=model,
            span=Span(0, model.num_blocks),
            issued_at=now,
            expires_at=now + 300.0,
        ).record
        self.directory.add(sign_record(record, self.identity).data)

    async def accept(self, channel: Channel) -> None:
        """Answer one question."""
        frames = FrameChannel(channel)
        message, payload = await frames.receive(FIRST)
        self.asked.append(message)
        if isinstance(message, RecordDigest):
            await exchange.answer(frames, self.directory, payload)
        elif self.refusal is not None:
            await frames.send(refusal(self.refusal))
        elif isinstance(message, GetStatus):
            await frames.send(LOAD)
        elif isinstance(message, Describe):
            await frames.send(Description("tiny", self.describes or message.fingerprint, "org/tiny"), b"{}")


class MemorySwarm:
    """A network of members on a virtual clock."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.network = MemoryNetwork()
        self.made: list[MemoryTransport] = []

    async def member(self, model: ModelSpec | None = MODEL) -> Member:
        """One more member, which serves a model if it is given one."""
        member = Member(self)
        if model is not None:
            member.serve(model)
        await member.transport.listen(member.accept)
        return member

    def _wrap(self, _: Transport, me: PeerId) -> Transport:
        self.made.append(MemoryTransport(me, self.network))
        return self.made[-1]

    def client(self, *members: Member) -> AsyncClient:
        """A client that has these members' tickets."""
        return AsyncClient([member.ticket for member in members], clock=self.clock, wrap=self._wrap)


@contextlib.asynccontextmanager
async def opened(swarm: MemorySwarm, *members: Member) -> AsyncIterator[AsyncClient]:
    """An open client of these members."""
    async with asyncio.timeout(20), swarm.client(*members) as client:
        yield client


def test_a_client_needs_a_way_to_the_swarm() -> None:
    """A ticket, an invite or a discovery; a private swarm is found by its own members only."""
    with pytest.raises(UsageError, match="at least one ticket"):
        AsyncClient()
    with pytest.raises(UsageError, match="at least one ticket"):
        AsyncClient(discoveries=Discoveries(DiscoveryOptions()))
    with pytest.raises(TicketError):
        AsyncClient(["not a ticket"])


def test_what_a_session_is_asked_for_has_names() -> None:
    """The error says what holds them."""
    client = AsyncClient([str(Ticket(Identity.generate().peer, ("memory://x",)))])
    for options in ({"max_tokens": 8}, 8, "exact"):
        with pytest.raises(UsageError, match=r"options cannot be .*: it is a SessionOptions"):
            client.session(MODEL, options=options)  # type: ignore[arg-type]  # what people pass


async def test_a_client_that_is_not_open_says_so() -> None:
    """Whatever it is asked, the error is the caller's mistake and names it."""
    client = AsyncClient([str(Ticket(Identity.generate().peer, ("memory://x",)))])
    record = signed_record(Identity.generate()).record
    for use in (
        lambda: client.dialler,
        lambda: client.candidates(MODEL),
        lambda: client.record(PeerId(record.peer)),
        lambda: client.failed(record),
    ):
        with pytest.raises(UsageError, match="use `async with`"):
            use()
    with pytest.raises(UsageError, match="use `async with`"):
        await client.refresh()
    with pytest.raises(UsageError, match="use `async with`"):
        await client.status()
    with pytest.raises(UsageError, match="use `async with`"):
        await client.open_session(MODEL, SessionOptions())
    await client.close()
    assert client.records() == []


async def test_one_ticket_finds_every_server() -> None:
    """What that member knows; the client's own tickets stay what they were."""
    swarm = MemorySwarm()
    one, two = await swarm.member(), await swarm.member()
    for signed in two.directory.records():
        one.directory.add(signed.data)
    async with opened(swarm, one) as client:
        assert {record.peer for record in client.records()} == {one.identity.peer, two.identity.peer}
        assert client.tickets == (one.ticket,)
        assert two.asked == []
        assert client.record(two.identity.peer).record.peer == two.identity.peer


async def test_nobody_answers() -> None:
    """The error says what was tried; nothing stays open."""
    swarm = MemorySwarm()
    gone = Member(swarm)
    with pytest.raises(NetworkError, match=r"no member of the swarm answered: .*does not answer"):
        async with opened(swarm, gone):
            pass
    with pytest.raises(UsageError, match="closed"):
        await swarm.made[0].dial(gone.identity.peer, f"memory://{gone.identity.peer}")


def test_why_nobody_answers_is_told_shortly() -> None:
    """Two causes, each once and not too long; a refusal by members goes before the rest."""
    silent = [NetworkError(f"{'x' * 300} {number}") for number in range(9)]
    told = _told([silent[0], *silent], ["DHT: nobody"])
    assert len(told) < 2 * MAX_CAUSE_CHARS + 50
    assert told.endswith("and 8 more")
    told = _told([*silent, NotAMember("only members")], ["DHT: nobody"])
    assert told == "only members; a node that was put out comes back with a new invite"
    assert _told([], []) == "nobody was found"


async def test_a_member_met_before_stands_in_for_the_tickets() -> None:
    """A ticket's member may leave; those it told of know the swarm as well."""
    swarm = MemorySwarm()
    one, two = await swarm.member(), await swarm.member()
    for signed in two.directory.records():
        one.directory.add(signed.data)
    async with opened(swarm, one) as client:
        await one.transport.close()
        await client.refresh()
        assert [type(message) for message in two.asked] == [RecordDigest]
        await two.transport.close()
        with pytest.raises(NetworkError, match="no member"):
            await client.refresh()


async def test_the_status_of_every_server() -> None:
    """One that does not answer is shown with its problem."""
    swarm = MemorySwarm()
    one, two = await swarm.member(), await swarm.member()
    two.refusal = ServerFull("loading", retry_after=1.0)
    async with opened(swarm, one, two) as client:
        found = {status.record.peer: status for status in await client.status()}
    assert found[one.identity.peer].status == LOAD
    assert found[one.identity.peer].problem == ""
    assert found[two.identity.peer].status is None
    assert "loading" in found[two.identity.peer].problem


async def test_a_model_is_described_by_any_of_its_servers() -> None:
    """If none does, the error has all their reasons."""
    swarm = MemorySwarm()
    one, two = await swarm.member(), await swarm.member()
    one.refusal = ServerFull("one is loading", retry_after=1.0)
    async with opened(swarm, one, two) as client:
        description, config = await client.describe(MODEL)
        assert (description.source, config) == ("org/tiny", b"{}")
        two.refusal = ServerFull("two is loading", retry_after=1.0)
        with pytest.raises(NoRoute, match=r"no server describes tiny: .*loading.*loading"):
            await client.describe(MODEL)


async def test_a_model_is_waited_for() -> None:
    """The swarm is asked again once a second until a server has it, or the time is over."""
    swarm = MemorySwarm()
    member = await swarm.member(None)
    async with opened(swarm, member) as client:
        finding = asyncio.create_task(client.find_model("tiny", wait_s=10.0))
        await swarm.clock.settle()
        assert not finding.done()
        member.serve()
        await swarm.clock.advance(REFRESH_S)
        assert await asyncio.wait_for(finding, 5) == MODEL
        with pytest.raises(NoRoute, match="serves other"):
            await client.find_model("other", wait_s=0.0)


class FakeSession:
    """Notes what it is asked for; fails as `error` says."""

    made: ClassVar[list[FakeSession]] = []
    error: ClassVar[ShoalError | None] = None

    def __init__(self, spec: SessionSpec, planner: AsyncClient, clock: object) -> None:
        self.spec = spec
        self.planner = planner
        self.ended: list[bool] = []
        self.patience: list[float] = []
        FakeSession.made.append(self)

    async def open(self, patience_s: float) -> None:
        """Session."""
        self.patience.append(patience_s)
        if FakeSession.error is not None:
            raise FakeSession.error

    async def resume(self, saved: object, hidden_states: object, patience_s: float) -> None:
        """Session."""
        await self.open(patience_s)

    async def close(self, end: bool = True) -> None:
        """Session."""
        self.ended.append(end)


@pytest.fixture
def _sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.client.session.session.Session", FakeSession)
    monkeypatch.setattr(FakeSession, "made", [])
    monkeypatch.setattr(FakeSession, "error", None)


@pytest.mark.usefixtures("_sessions")
@pytest.mark.parametrize("model", ["tiny", FINGERPRINT, MODEL])
async def test_a_session_is_of_a_model_by_any_name(model: str | ModelSpec) -> None:
    """All its blocks unless some are named; leaving `async with` closes it."""
    swarm = MemorySwarm()
    member = await swarm.member()
    async with opened(swarm, member) as client:
        async with client.session(model, "3:6", max_tokens=10, wait_s=2.0):
            made = FakeSession.made[0]
            assert (made.spec.model, made.spec.span, made.spec.me) == (MODEL, Span(3, 6), client.identity.peer)
            assert (made.spec.options.max_tokens, made.patience, made.ended) == (10, [2.0], [])
            assert made.planner is client
        assert made.ended == [True]
        await client.open_session(MODEL, SessionOptions(max_tokens=5))
        assert (FakeSession.made[1].spec.span, FakeSession.made[1].ended) == (Span(0, 12), [])
        with pytest.raises(SpanError):
            async with client.session(MODEL, "3:13"):
                pass
    assert any(isinstance(message, GetStatus) for message in member.asked)  # before a route was planned


@pytest.mark.usefixtures("_sessions")
async def test_a_session_that_does_not_open_leaves_nothing() -> None:
    """It is closed; one that could not be taken up stays with its servers, to be tried again."""
    swarm = MemorySwarm()
    async with opened(swarm, await swarm.member()) as client:
        FakeSession.error = NoRoute("blocks 0:6 have no server")
        with pytest.raises(NoRoute):
            await client.open_session(MODEL, SessionOptions())
        assert FakeSession.made[0].ended == [True]
        saved: Any = SessionSpec(MODEL, Span(0, 12), client.identity.peer, SessionOptions(), resumed=2)
        with pytest.raises(NoRoute):
            await client.resume(saved, None, 1.0)  # type: ignore[arg-type]
        assert FakeSession.made[1].ended == [False]
        FakeSession.error = None
        await client.resume(saved, None, 1.0)  # type: ignore[arg-type]
        assert (FakeSession.made[2].spec.resumed, FakeSession.made[2].ended) == (2, [])


async def test_a_server_that_failed_is_no_candidate() -> None:
    """Until it answers when the swarm is asked again."""
    swarm = MemorySwarm()
    member = await swarm.member()
    async with opened(swarm, member) as client:
        (record,) = client.candidates(MODEL)[0]
        client.failed(record)
        assert client.candidates(MODEL)[0] == []
        await client.refresh()
        assert [one.peer for one in client.candidates(MODEL)[0]] == [member.identity.peer]
