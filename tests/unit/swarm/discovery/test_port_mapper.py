"""Port mapping against a router that exists only here: what is asked for and what becomes of the answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from shoal.swarm.discovery.port_mapper import MAPPING_S, PortMapper
from tests.support.virtual_clock import VirtualClock

HERE = ("tls://192.168.1.5:4433", "iroh://192.168.1.5:4434", "iroh://https://relay.example/")


class Router:
    """Stands for the engine: numbers each mapping, and says what the test makes it say."""

    def __init__(self) -> None:
        self.library = SimpleNamespace(portmap_protocol=SimpleNamespace(tcp="tcp", udp="udp"))
        self.handlers: dict[str, Any] = {}
        self.asked: list[tuple[str, int]] = []

    def open(self) -> Router:
        """It is its own session."""
        return self

    def on(self, alert: str, handler: Any) -> None:
        """Remember who wants to know."""
        self.handlers[alert] = handler

    def add_port_mapping(self, protocol: str, outside: int, inside: int) -> list[int]:
        """Two handles for each, as for UPnP and NAT-PMP."""
        assert outside == inside
        self.asked.append((protocol, inside))
        return [2 * len(self.asked), 2 * len(self.asked) + 1]

    def grant(self, mapping: int, port: int) -> None:
        """The router leads `port` here."""
        self.handlers["portmap_alert"](SimpleNamespace(mapping=mapping, external_port=port))

    def tell_host(self, host: str) -> None:
        """The router knows its own address."""
        self.handlers["external_ip_alert"](SimpleNamespace(external_address=host))


async def test_granted_ports_become_addresses() -> None:
    """TLS and hello are TCP, iroh is UDP, relays are nobody's port; waiting ends when everything was granted."""
    clock, router = VirtualClock(), Router()
    mapper = PortMapper(router, clock)  # type: ignore[arg-type]
    mapping = asyncio.create_task(mapper.map((*HERE, "hello://0.0.0.0:99")))
    await clock.settle()
    assert router.asked == [("tcp", 4433), ("udp", 4434), ("tcp", 99)]
    assert mapper.outside(HERE) == ()
    router.grant(2, 4433)
    router.grant(3, 4433)
    router.grant(4, 50_000)
    router.grant(7, 51_000)
    router.grant(77, 1)  # of somebody else
    await clock.settle()
    assert not mapping.done()
    assert mapper.outside(HERE) == ()
    router.tell_host("203.0.113.9")
    await clock.settle()
    assert mapping.done()
    assert mapper.outside(HERE) == ("tls://203.0.113.9:4433", "iroh://203.0.113.9:50000")
    assert mapper.outside_port("tcp", 99) == 51_000
    assert mapper.outside_port("tcp", 1234) == 1234


async def test_a_router_that_does_not_answer_costs_a_moment() -> None:
    """Without grants the ports stay what they are, and the last problem is told."""
    clock, router = VirtualClock(), Router()
    mapper = PortMapper(router, clock)  # type: ignore[arg-type]
    await clock.run(mapper.map(HERE))
    assert clock.monotonic() == MAPPING_S
    assert mapper.outside(HERE) == ()
    assert "router" in mapper.problem
    router.handlers["portmap_error_alert"](SimpleNamespace(message=lambda: "no UPnP device"))
    assert mapper.problem == "no UPnP device"


async def test_an_outer_address_of_the_other_family_is_not_the_routers() -> None:
    """DHT nodes tell this one's IPv6 address as well; the mapped ports are the router's, which is IPv4."""
    clock, router = VirtualClock(), Router()
    mapper = PortMapper(router, clock)  # type: ignore[arg-type]
    mapping = asyncio.create_task(mapper.map(HERE[:1]))
    await clock.settle()
    router.tell_host("203.0.113.9")
    router.tell_host("2001:db8::9")
    router.grant(2, 4433)
    await mapping
    assert mapper.outside(HERE) == ("tls://203.0.113.9:4433",)


async def test_waiting_for_a_router_can_be_given_up() -> None:
    """Nothing goes on behind the back of who was cancelled."""
    clock, router = VirtualClock(), Router()
    mapping = asyncio.create_task(PortMapper(router, clock).map(HERE))  # type: ignore[arg-type]
    await clock.settle()
    mapping.cancel()
    await clock.settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
