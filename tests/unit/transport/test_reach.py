"""What a server dials because a record says so."""

from __future__ import annotations

import pytest

from shoal.transport.reach import dialled_for_others

PUBLIC = "tls://203.0.113.1:4433"


@pytest.mark.parametrize(
    "address",
    [
        "tls://127.0.0.1:22",
        "iroh://127.8.9.1:22",
        "tls://[::1]:22",
        "tls://[::ffff:127.0.0.1]:22",
        "tls://[64:ff9b::7f00:1]:22",
        "tls://[2002:7f00:1::]:22",
        "tls://[64:ff9b:1::7f00:1]:22",
        "tls://[64:ff9b:1:2:3:4:7f00:1]:22",
        "tls://[::127.0.0.1]:22",
        "tls://[::ffff:0:127.0.0.1]:22",
        "tls://[::ffff:0:a9fe:a9fe]:80",
        "tls://169.254.169.254:80",
        "tls://[fe80::1]:80",
        "tls://0.0.0.0:22",
        "tls://0.1.2.3:22",
        "tls://[::]:22",
        "tls://224.0.0.1:80",
        "tls://[ff02::1]:80",
        "tls://255.255.255.255:80",
        "tls://10.0.0.1:22",
        "tls://172.31.255.1:22",
        "tls://192.168.1.1:80",
        "tls://100.64.0.1:22",
        "tls://[fd00::1]:22",
        "tls://[::ffff:10.0.0.1]:22",
        "tls://localhost:22",
        "tls://https://203.0.113.9/",
        "iroh://https://relay.example/",
        "nonsense",
    ],
)
def test_a_public_server_does_not_dial(address: str) -> None:
    """Its own machine, its own network, nowhere in particular, names, and relays that it does not use."""
    assert dialled_for_others([address, PUBLIC], [PUBLIC]) == (PUBLIC,)


@pytest.mark.parametrize(
    ("own", "address"),
    [
        ("tls://127.0.0.1:1", "tls://127.0.0.2:2"),
        ("tls://127.0.0.1:1", "iroh://[::1]:2"),
        ("tls://[fe80::1]:1", "tls://169.254.1.1:2"),
        ("tls://10.0.0.1:1", "tls://192.168.0.1:2"),
        ("iroh://https://relay.example/", "iroh://https://relay.example/"),
        ("iroh://https://euw1-1.relay.iroh.network./", "iroh://https://use1-1.relay.iroh.network./"),
        (PUBLIC, "memory://" + "ab" * 32),
    ],
)
def test_a_server_dials_where_it_is_itself(own: str, address: str) -> None:
    """Servers on loopback make a swarm of their own, as do those of one link; relays of one operator lead to each other."""
    assert dialled_for_others([address], [own]) == (address,)


@pytest.mark.parametrize("address", ["tls://0.0.0.0:22", "tls://224.0.0.1:80"])
def test_nowhere_is_nobodys_place(address: str) -> None:
    """Whatever a server says of itself."""
    assert dialled_for_others([address], [address]) == ()


def test_another_host_of_a_relays_domain_is_no_relay() -> None:
    """Two labels are anybody's neighbourhood; another port is another service; numbers have no domain."""
    own = ["iroh://https://relay.example.org/"]
    assert dialled_for_others(["iroh://https://victim.example.org/"], own) == ()
    assert dialled_for_others(["iroh://https://relay.example.org:22/"], own) == ()
    assert dialled_for_others(["iroh://https://127.0.0.1/"], ["iroh://https://10.0.0.1/"]) == ()
    assert dialled_for_others(["iroh://https://10.0.0.1/"], ["iroh://https://10.0.0.1/"]) != ()
