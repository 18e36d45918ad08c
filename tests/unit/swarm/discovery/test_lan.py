"""mDNS on the loopback interface: found, updated, withdrawn; and hostile TXT records."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.swarm.discovery.discovery import Contact, Presence
from shoal.swarm.discovery.lan import (
    MAX_SERVICES,
    SERVICE_TYPE,
    Finds,
    LanDiscovery,
    _Browse,
    _Found,
    open_zeroconf,
    parse_txt,
    service_info,
)
from shoal.types import PeerId

LOOPBACK = ("127.0.0.1",)
FINGERPRINT = "f0" * 16


def presence(digit: str, port: int = 4433, fingerprint: str = FINGERPRINT) -> Presence:
    """A member whose id is one digit 64 times."""
    return Presence(PeerId(digit * 64), fingerprint, (f"tls://127.0.0.1:{port}", f"iroh://127.0.0.1:{port + 1}"), 9)


async def first(discovery: LanDiscovery, count: int) -> dict[PeerId | None, Contact]:
    """The first `count` contacts of a search, or fewer when it ends before."""
    found: dict[PeerId | None, Contact] = {}
    async with contextlib.aclosing(discovery.find()) as contacts:
        async for contact in contacts:
            found[contact.peer] = contact
            if len(found) == count:
                break
    return found


async def test_members_find_each_other_until_they_leave() -> None:
    """Of two servers of one model and one of another a search gives those of its model, as they are now, and no leavers."""
    everybody = one, two, other, looking = [LanDiscovery(LOOPBACK, FINGERPRINT) for _ in range(4)]
    try:
        await asyncio.gather(
            one.announce(presence("1")),
            two.announce(presence("2")),
            other.announce(presence("3", fingerprint="e1" * 16)),
        )
        members = {member.peer: Contact(member.peer, member.addresses) for member in (presence("1"), presence("2"))}
        assert await first(looking, 2) == members
        assert await first(one, 2) == members
        changed = presence("2", port=5000)
        await asyncio.gather(two.announce(changed), one.close())
        assert await first(looking, 9) == {changed.peer: Contact(changed.peer, changed.addresses)}
    finally:
        for discovery in everybody:
            await discovery.close()
            await discovery.close()
    with pytest.raises(UsageError, match="closed"):
        await one.announce(presence("1"))


async def test_interfaces_that_do_not_exist_are_named() -> None:
    """A wrong interface is a mistake on this side."""
    discovery = LanDiscovery(("no such interface",))
    with pytest.raises(UsageError, match="no such interface"):
        await discovery.announce(presence("1"))
    await discovery.close()


@pytest.mark.parametrize("name", ["evil.local.", "x._ipp._tcp.local.", ""])
async def test_names_of_other_services_are_nobody(name: str) -> None:
    """Anybody may send a pointer from our service to any name: no task fails of it, and no contact comes of it."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    zeroconf = open_zeroconf(LOOPBACK)
    found: asyncio.Queue[object] = asyncio.Queue()
    try:
        async with asyncio.TaskGroup() as group:
            starts = SimpleNamespace(start=group.create_task)
            browse = _Browse(zeroconf, found, starts)  # type: ignore[arg-type]
            browse.changed(zeroconf.zeroconf, SERVICE_TYPE, name, SimpleNamespace(name="Added"))
    finally:
        await zeroconf.async_close()
    gc.collect()
    assert complaints == []
    assert found.empty()


async def test_a_machine_with_many_names_hides_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are looked at, and its network has no more turns than another one."""
    monkeypatch.setattr("shoal.swarm.discovery.lan.MAX_SERVICES", 4)
    crowd, honest, looking = [LanDiscovery(LOOPBACK, FINGERPRINT) for _ in range(3)]
    try:
        zeroconf = await crowd._open()
        for number in range(40):
            peer = PeerId(f"{number:032x}" * 2)
            member = Presence(peer, FINGERPRINT, (f"tls://127.0.0.9:{number + 1}",), 9)
            await (await zeroconf.async_register_service(service_info(member), cooperating_responders=True))
        await honest.announce(presence("e"))
        found = await first(looking, 99)
        assert len(found) == 4
        assert presence("e").peer in found
    finally:
        for discovery in (crowd, honest, looking):
            await discovery.close()


async def test_networks_take_turns() -> None:
    """By the first address; so many are given, and nothing after the end."""
    finds = Finds(random.Random(1))
    for number in range(MAX_SERVICES):
        host = "127.0.0.3" if number == 5 else "127.0.0.2"
        finds.put_nowait(_Found(Contact(PeerId(f"{number:064x}"), (f"tls://{host}:1",)), FINGERPRINT))
    finds.put_nowait(_Found(Contact(PeerId("f" * 64), ("tls://127.0.0.4:1",)), FINGERPRINT))
    given = [await finds.next() for _ in range(MAX_SERVICES)]
    hosts = [item.contact.addresses[0] for item in given[:3] if item is not None]
    assert sorted(hosts) == [f"tls://127.0.0.{number}:1" for number in (2, 3, 4)]
    assert await finds.next() is None
    ended = Finds(random.Random(1))
    ended.end()
    assert await ended.next() is None


async def test_what_cannot_be_withdrawn_is_let_go() -> None:
    """Sockets are closed although the goodbye failed."""

    class Failing:
        closed = False

        async def async_unregister_all_services(self) -> None:
            raise OSError("the network is down")

        async def async_close(self) -> None:
            self.closed = True

    discovery, zeroconf = LanDiscovery(LOOPBACK), Failing()
    discovery._zeroconf = zeroconf  # type: ignore[assignment]
    with pytest.raises(OSError, match="down"):
        await discovery.close()
    assert zeroconf.closed


def test_what_is_registered_is_what_is_parsed() -> None:
    """A TXT record survives the way to the other side."""
    member = presence("a")
    found = parse_txt(service_info(member).properties)
    assert found is not None
    assert (found.contact, found.fingerprint) == (Contact(member.peer, member.addresses), FINGERPRINT)


GOOD: dict[bytes, bytes | None] = {b"id": b"a" * 64, b"fp": b"f" * 32, b"a0": b"tls://127.0.0.1:1"}


@pytest.mark.parametrize(
    "changes",
    [
        {b"id": None},
        {b"id": b"A" * 64},
        {b"id": b"a" * 63},
        {b"id": b"\xff" * 64},
        {b"fp": b""},
        {b"fp": b"../../../../../../../../../../etc"},
        {b"a0": b"tls://evil.example:1"},
        {b"a0": b"tls://127.0.0.1:0"},
        {b"a0": b"tls://127.0.0.1:65536"},
        {b"a0": b"tls://127.0.0.1:" + b"1" * 200},
        {b"a0": None},
        {b"a0": None, b"a99": b"tls://127.0.0.1:1"},
    ],
)
def test_hostile_txt_records_are_nobody(changes: dict[bytes, bytes | None]) -> None:
    """Wrong ids, names to look up, impossible ports and overlong values are dropped."""
    assert parse_txt(GOOD) is not None
    assert parse_txt({**GOOD, **changes}) is None


@given(st.dictionaries(st.sampled_from([b"id", b"fp", b"a0", b"a7", b"x"]), st.none() | st.binary(max_size=255)))
def test_any_txt_record_parses_or_not(properties: dict[bytes, bytes | None]) -> None:
    """No TXT record raises anything."""
    found = parse_txt(properties)
    assert found is None or found.contact.addresses
