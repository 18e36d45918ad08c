"""Whatever a path does, a channel over it is a stream: everything, once, in order, and not before its time."""

from __future__ import annotations

import asyncio
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import Channel
from shoal.transport.memory_transport import MemoryNetwork, MemoryTransport
from shoal.types import PeerId
from tests.support.emulated_links import LinkedTransport
from tests.support.link_plan import EmulatedLink, LinkPlan
from tests.support.virtual_clock import VirtualClock

A, B = PeerId("a" * 64), PeerId("b" * 64)

links = st.builds(
    EmulatedLink,
    delay_s=st.sampled_from([0.0, 0.01, 0.3]),
    jitter_s=st.sampled_from([0.0, 0.1]),
    rate_bytes_s=st.sampled_from([1e4, 1e6, float("inf")]),
    loss=st.sampled_from([0.0, 0.1]),
    up=st.booleans(),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 3000)),
        st.tuples(st.just("wait"), st.sampled_from([0.001, 0.05, 1.0])),
        st.tuples(st.just("change"), links),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(0, 1000))
def test_a_linked_channel_is_a_stream(plan: list[tuple[str, object]], seed: int) -> None:
    """Random sends, waits and changes of the link, partitions included; at the end the link is up."""
    asyncio.run(play(plan, seed))


async def play(steps: list[tuple[str, object]], seed: int) -> None:
    """Do the steps, heal, and compare what arrived with what was sent."""
    clock, plan, network = VirtualClock(), LinkPlan(), MemoryNetwork()
    a, b = (LinkedTransport(MemoryTransport(peer, network), peer, plan, clock, Random(seed)) for peer in (A, B))
    arrived, sent = bytearray(), bytearray()
    earliest: list[tuple[float, int]] = []
    too_early: list[tuple[float, int]] = []

    async def take(accepted: Channel) -> None:
        channel = ByteStream(accepted)
        while data := await channel.receive():
            arrived.extend(data)
            now = clock.monotonic() + 1e-9
            too_early.extend((at, count) for at, count in earliest if count < len(arrived) and at > now)

    await b.listen(take)
    channel = ByteStream(await clock.run(a.dial(B, f"memory://{B}")))
    for action, value in steps:
        if action == "send":
            assert isinstance(value, int)
            earliest.append((clock.monotonic() + plan.link(A, B).delay_s, len(sent)))
            data = Random(len(sent)).randbytes(value)
            sent.extend(data)
            await channel.send(data)
        elif action == "wait":
            assert isinstance(value, float)
            await clock.advance(value)
        else:
            assert isinstance(value, EmulatedLink)
            plan.set(A, B, value)
    plan.set(A, B, EmulatedLink())
    await clock.run(channel.close())
    await clock.advance(10.0)
    assert arrived == sent
    assert too_early == []
    await clock.run(a.close())
    await clock.run(b.close())
