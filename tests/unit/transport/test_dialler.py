"""The race between a peer's addresses, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shoal.errors import DialError, IdentityError, ShoalError, UsageError
from shoal.transport.channel import Channel, ChannelHandler, ChannelSink
from shoal.transport.dialler import MAX_ADDRESSES, STAGGER_S, TLS_HEAD_START_S, Dialler
from shoal.types import PeerId
from tests.support.virtual_clock import VirtualClock

PEER = PeerId("ab" * 32)


class FakeChannel:
    """A channel that only knows how it was made and whether it was dropped."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.transport = address.partition("://")[0]
        self.host = ""
        self.peer = PEER
        self.aborted = False

    writable = True

    def attach(self, sink: ChannelSink) -> None:
        """Nothing comes."""

    def detach(self, unused: bytes) -> None:
        """Nothing came."""

    def pause_reading(self) -> None:
        """Nothing comes."""

    def resume_reading(self) -> None:
        """Nothing comes."""

    def write(self, data: bytes | bytearray) -> None:
        """Not in these tests."""

    async def drain(self) -> None:
        """There is room."""

    async def close(self) -> None:
        """Nothing to flush."""

    def abort(self) -> None:
        """Note it."""
        self.aborted = True


class FakeTransport:
    """Dials take the time, and end in the error, that the test gives for an address."""

    def __init__(self, name: str, clock: VirtualClock, answers: dict[str, tuple[float, ShoalError | None]]) -> None:
        self.name = name
        self.addresses: tuple[str, ...] = ()
        self.dials: list[tuple[float, str]] = []
        self.cancelled: list[str] = []
        self.channels: list[FakeChannel] = []
        self._clock = clock
        self._answers = answers

    async def listen(self, handler: ChannelHandler) -> None:
        """Not in these tests."""

    async def close(self) -> None:
        """Not in these tests."""

    async def dial(self, peer: PeerId, address: str) -> Channel:
        """Answer as planned; other addresses never do."""
        self.dials.append((self._clock.monotonic(), address))
        seconds, error = self._answers.get(address, (1e9, None))
        try:
            await self._clock.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(address)
            raise
        if error is not None:
            raise error
        self.channels.append(FakeChannel(address))
        return self.channels[-1]


class World:
    """A dialler with two fake transports on a virtual clock."""

    def __init__(self, answers: dict[str, tuple[float, ShoalError | None]], only: str | None = None) -> None:
        self.clock = VirtualClock()
        self.tls = FakeTransport("tls", self.clock, answers)
        self.iroh = FakeTransport("iroh", self.clock, answers)
        self.dialler = Dialler([self.tls, self.iroh], self.clock, only=only)

    async def dial(self, *addresses: str, deadline_s: float = 1.5) -> FakeChannel:
        """Dial with the clock running."""
        channel = await self.clock.run(self.dialler.dial(PEER, addresses, deadline_s))
        assert isinstance(channel, FakeChannel)
        return channel


async def test_tls_wins_a_close_race() -> None:
    """iroh, though as fast, starts later, and does not start at all once TLS has answered."""
    world = World({"tls://a": (0.1, None), "iroh://a": (0.1, None)})
    assert (await world.dial("iroh://a", "tls://a")).address == "tls://a"
    assert world.iroh.dials == []
    assert world.clock.monotonic() == pytest.approx(0.1)


async def test_iroh_wins_where_tls_is_silent() -> None:
    """After the head start iroh may answer first; the silent attempt is cancelled."""
    world = World({"iroh://a": (0.1, None)})
    assert (await world.dial("tls://a", "iroh://a")).address == "iroh://a"
    assert world.clock.monotonic() == pytest.approx(TLS_HEAD_START_S + 0.1)
    assert world.tls.cancelled == ["tls://a"]


async def test_a_refusal_ends_the_head_start() -> None:
    """When nothing is under way any more, the next attempt does not wait for its time."""
    world = World({"tls://a": (0.01, DialError("refused")), "iroh://a": (0.01, None)})
    assert (await world.dial("tls://a", "iroh://a")).address == "iroh://a"
    assert world.clock.monotonic() == pytest.approx(0.02)


async def test_iroh_alone_needs_no_head_start() -> None:
    """Without a TLS address to wait for, iroh begins at once."""
    world = World({"iroh://a": (0.1, None)})
    await world.dial("iroh://a")
    assert world.iroh.dials == [(0.0, "iroh://a")]


async def test_addresses_are_staggered() -> None:
    """Several addresses of a transport begin one after the other, in the order given."""
    world = World({"tls://c": (0.5, None)})
    await world.dial("tls://a", "tls://b", "tls://c")
    assert world.tls.dials == [
        (pytest.approx(0.0), "tls://a"),
        (pytest.approx(STAGGER_S), "tls://b"),
        (pytest.approx(2 * STAGGER_S), "tls://c"),
    ]
    assert sorted(world.tls.cancelled) == ["tls://a", "tls://b"]


async def test_late_winners_are_dropped() -> None:
    """Of two that answer at the same moment one is kept and the other's channel is ended."""
    world = World({"tls://a": (0.1, None), "tls://b": (0.1 - STAGGER_S, None)})
    channel = await world.dial("tls://a", "tls://b")
    assert not channel.aborted
    assert all(other.aborted for other in world.tls.channels if other is not channel)


async def test_all_causes_are_named() -> None:
    """When all fail, the error tells of each address, silent ones included."""
    world = World({"tls://a": (0.1, DialError("refused")), "iroh://a": (0.1, IdentityError("somebody else"))})
    with pytest.raises(DialError) as caught:
        await world.dial("tls://a", "tls://b", "iroh://a", deadline_s=1.0)
    text = str(caught.value)
    assert PEER[:8] in text
    for part in ("tls://a: refused", "tls://b: no answer within 1 s", "iroh://a: somebody else"):
        assert part in text
    assert world.clock.monotonic() == pytest.approx(1.0)


async def test_only_strangers_answered() -> None:
    """When another node answered at every address, that is what is wrong."""
    world = World({"tls://a": (0.1, IdentityError("node 12")), "iroh://a": (0.1, IdentityError("node 34"))})
    with pytest.raises(IdentityError, match="node 12; node 34"):
        await world.dial("tls://a", "iroh://a")


async def test_one_transport_can_be_forced() -> None:
    """`only` leaves the others out, and their addresses count for nothing."""
    world = World({"tls://a": (0.0, None), "iroh://a": (0.0, None)}, only="iroh")
    assert (await world.dial("tls://a", "iroh://a")).address == "iroh://a"
    assert world.tls.dials == []
    with pytest.raises(DialError, match="no address"):
        await world.dial("tls://a")


@pytest.mark.parametrize("addresses", [(), ("quantum://a",), ("",), ("a:1",)])
async def test_nothing_to_dial(addresses: tuple[str, ...]) -> None:
    """Unknown schemes are skipped; nothing left is a DialError that shows them."""
    with pytest.raises(DialError, match="no address"):
        await World({}).dial(*addresses)


async def test_a_bad_address_does_not_spoil_the_others() -> None:
    """An address that a transport cannot read is one more cause."""
    world = World({"tls://a": (0.0, UsageError("not an address")), "tls://b": (0.2, None)})
    assert (await world.dial("tls://a", "tls://b")).address == "tls://b"


async def test_number_of_addresses_is_bounded() -> None:
    """Only the first few that can be dialled are tried, repeats counting once."""
    world = World({})
    many = ["quantum://x"] * 20 + ["tls://a"] * 20 + [f"tls://{index}" for index in range(100)]
    with pytest.raises(DialError):
        await world.dial(*many, deadline_s=10.0)
    assert [address for _, address in world.tls.dials] == ["tls://a", *(f"tls://{i}" for i in range(MAX_ADDRESSES - 1))]


async def test_cancelling_cancels_the_attempts() -> None:
    """Nothing of a dial goes on when its caller has given up."""
    world = World({})
    dialling = asyncio.create_task(world.dialler.dial(PEER, ["tls://a", "iroh://a"], 10.0))
    await world.clock.advance(1.0)
    dialling.cancel()
    await asyncio.gather(dialling, return_exceptions=True)
    assert (world.tls.cancelled, world.iroh.cancelled) == (["tls://a"], ["iroh://a"])


async def test_a_mistake_is_not_taken_for_a_failure() -> None:
    """What is no error of ours is raised as it is."""
    world = World({})
    broken: Callable[..., object] = lambda peer, address: 1 / 0  # noqa: E731
    world.tls.dial = broken  # type: ignore[assignment,method-assign]  # a transport with a bug
    with pytest.raises(ZeroDivisionError):
        await world.dial("tls://a", "iroh://a")


async def test_the_address_that_answered_last() -> None:
    """It alone is enough to see whether a peer is still there; once it is silent all addresses count again."""
    clock = VirtualClock()
    answers: dict[str, tuple[float, ShoalError | None]] = {"tls://a:1": (0.01, None)}
    dialler = Dialler([FakeTransport("tls", clock, answers), FakeTransport("iroh", clock, {})], clock)
    addresses = ("tls://a:1", "iroh://a:2")
    assert dialler.narrowed(PEER, addresses) == addresses
    await clock.run(dialler.dial(PEER, addresses))
    assert dialler.narrowed(PEER, addresses) == ("tls://a:1",)
    assert dialler.narrowed(PEER, ("iroh://a:2",)) == ("iroh://a:2",)
    answers["tls://a:1"] = (0.01, DialError("refused"))
    with pytest.raises(DialError):
        await clock.run(dialler.dial(PEER, dialler.narrowed(PEER, addresses)))
    assert dialler.narrowed(PEER, addresses) == addresses
