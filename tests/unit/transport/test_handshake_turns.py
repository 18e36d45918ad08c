"""Turns of handshakes in an event loop."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.transport.address import host_port
from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import Transport
from shoal.transport.handshake_queue import HANDSHAKE_BURST_S
from shoal.transport.handshake_turns import HandshakeTurns
from shoal.transport.inbound_tasks import InboundTasks
from shoal.transport.iroh_transport import IrohTransport
from shoal.transport.tls_transport import TlsTransport
from tests.attacks.hostile_client import client_hello
from tests.support.virtual_clock import VirtualClock
from tests.unit.transport.nodes import Net, Node, echo, read_exactly, until


async def test_one_in_each_turn_of_the_loop() -> None:
    """However many come at once, others have a turn between two of them."""
    turns, begun = HandshakeTurns(VirtualClock()), list[int]()

    async def begin(number: int) -> None:
        await turns.turn("a")
        begun.append(number)

    tasks = [asyncio.ensure_future(begin(number)) for number in range(20)]
    seen = [0]
    while len(begun) < len(tasks):
        await asyncio.sleep(0)
        seen.append(len(begun))
    assert begun == list(range(20))
    assert max(after - before for before, after in itertools.pairwise(seen)) == 1


async def test_a_debt_is_waited_for() -> None:
    """What handshakes have cost beyond their share of the time keeps the next one waiting, and a cancelled one nobody."""
    clock = VirtualClock()
    turns = HandshakeTurns(clock)
    (await turns.turn("a")).spent(HANDSHAKE_BURST_S + 0.01)
    cancelled, waiting = (asyncio.ensure_future(turns.turn(source)) for source in "bc")
    await asyncio.sleep(0.02)
    assert not waiting.done()
    cancelled.cancel()
    await clock.advance(1.0)
    await asyncio.wait_for(waiting, 10)


async def test_what_is_computed_is_counted() -> None:
    """The time of the thread within `with turn:`."""
    turns = HandshakeTurns(VirtualClock())
    turn = await turns.turn("a")
    with turn:
        sum(range(200_000))
    assert turns._queue._budget.used > 0.0001


@pytest.fixture(params=["tls", "iroh"])
def transport(request: pytest.FixtureRequest) -> type[Transport]:
    """Each that listens to strangers."""
    return {"tls": TlsTransport, "iroh": IrohTransport}[request.param]


async def test_who_is_through_is_served_while_others_wait(transport: type[Transport]) -> None:
    """A node's handshakes wait for their turn, and its channels do not."""
    clock = VirtualClock()
    turns = HandshakeTurns(clock)
    key = Ed25519PrivateKey.generate()
    server = Node(key, transport(key, turns=turns))  # type: ignore[call-arg]  # both take it
    await server.transport.listen(lambda channel: echo(ByteStream(channel)))
    async with Net(transport.name) as net:
        first = await net.node().dial(server)
        (await turns.turn("a flood")).spent(HANDSHAKE_BURST_S + 0.05)
        second = asyncio.ensure_future(net.node().dial(server))
        for _ in range(3):
            await first.send(b"still here")
            assert await read_exactly(first, 10) == b"still here"
            await asyncio.sleep(0.05)
        assert not second.done()
        await clock.advance(10.0)
        channel = await second
        await channel.send(b"now")
        assert await read_exactly(channel, 3) == b"now"
        await server.transport.close()


async def test_who_hangs_up_keeps_no_place() -> None:
    """A connection that has said hello and gone waits for no turn."""
    turns, key = HandshakeTurns(VirtualClock()), Ed25519PrivateKey.generate()
    server = TlsTransport(key, turns=turns)
    await server.listen(lambda channel: echo(ByteStream(channel)))
    (await turns.turn("a flood")).spent(HANDSHAKE_BURST_S + 100.0)
    _, writer = await asyncio.open_connection(*host_port(server.addresses[0], "tls"))
    writer.write(client_hello())
    await until(lambda: turns._queue)
    writer.transport.abort()
    await until(lambda: not turns._queue and not len(server._tasks._unproven))
    await server.close()


async def test_a_forged_address_takes_nobodys_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over UDP an address is asked whether it is there, when many come; honest diallers answer and are served."""
    monkeypatch.setattr(InboundTasks, "crowded", True)
    async with Net("iroh") as net:
        channel = await net.node().dial(await net.server(echo))
        await channel.send(b"here")
        assert await read_exactly(channel, 4) == b"here"
