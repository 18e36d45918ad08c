"""Addresses as text."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.transport.address import (
    MAX_HOSTS,
    host_port,
    join_host_port,
    local_hosts,
    node_address,
    numeric,
    source_network,
)
from shoal.types import is_plain


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("[::1]:65535", "::1", 65535), ("example.org:80", "example.org", 80)],
)
def test_host_and_port(text: str, host: str, port: int) -> None:
    """Numbers, brackets and names; and back."""
    assert host_port(text) == (host, port)
    assert host_port(f"tls://{text}", "tls") == (host, port)
    assert join_host_port(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":1",
        "h:65536",
        "h:-1",
        "h:1x",
        "h:٣",
        "[]:1",
        "::1",
        "::1:0",
        "[::1",
        "a:b:1",
        "http://a:1",
    ],
)
def test_no_address(text: str) -> None:
    """Everything else is a UsageError that quotes it."""
    with pytest.raises(UsageError, match="address"):
        host_port(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tls://203.0.113.5:4433", ("tls", "203.0.113.5", 4433, False)),
        ("iroh://[2001:db8::1]:1", ("iroh", "2001:db8::1", 1, False)),
        ("iroh://https://relay.example/", ("iroh", "relay.example", 0, True)),
        ("iroh://http://127.0.0.1:3340", ("iroh", "127.0.0.1", 3340, True)),
        ("memory://abcd", ("memory", "abcd", 0, False)),
    ],
)
def test_node_addresses(text: str, address: tuple[str, str, int, bool]) -> None:
    """What nodes tell of themselves, taken apart."""
    assert node_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:1",
        "tls://127.0.0.1",
        "tls://127.0.0.1:0",
        "tls://127.0.0.1:65536",
        "tls://127.0.0.1:1[/]",
        "tls://127.0.0.1:1\n",
        "tls://[127.0.0.1:1",
        "tls://[fe80::1%eth0]:1",
        "tls://::1:1",
        "tls://host:1",
        "iroh://host:1",
        "tls://1.2.3:1",
        "tls://127.0.0.1:1/path",
        "TLS://127.0.0.1:1",
        "iroh://https://relay.example/path?query",
        "tls://" + "1" * 200,
    ],
)
def test_no_node_address(text: str) -> None:
    """Everything else is a UsageError, whoever wrote it."""
    with pytest.raises(UsageError):
        node_address(text)


@given(st.text(max_size=60), st.sampled_from(["", "tls://", "iroh://https://", "x://["]))
def test_any_text_is_a_node_address_or_refused(text: str, start: str) -> None:
    """No text raises anything but UsageError, and what is one has no characters that mean something to a terminal."""
    try:
        node_address(start + text)
    except UsageError:
        return
    assert is_plain(start + text)


def test_wrong_scheme() -> None:
    """An address of another transport is not taken."""
    with pytest.raises(UsageError, match="not a tls address"):
        host_port("iroh://127.0.0.1:1", "tls")


@pytest.mark.parametrize(("bound", "hosts"), [("127.0.0.1", ("127.0.0.1",)), ("::1", ("[::1]",)), ("name", ("name",))])
def test_bound_to_one_host(bound: str, hosts: tuple[str, ...]) -> None:
    """Who listens on one address has that one."""
    assert local_hosts(bound) == hosts


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_wildcards(wildcard: str) -> None:
    """A wildcard becomes addresses of its family, a few at most, on whatever machine this is."""
    hosts = local_hosts(wildcard)
    assert 1 <= len(hosts) <= MAX_HOSTS
    for host in hosts:
        address = ipaddress.ip_address(host.strip("[]"))
        assert not address.is_unspecified
        assert address.version == ipaddress.ip_address(wildcard).version


@pytest.mark.parametrize(
    ("leading_out", "of_name", "hosts"),
    [
        (["198.51.100.7"], ["127.0.1.1"], ("198.51.100.7",)),
        (["198.51.100.7"], ["198.51.100.7", "10.0.0.2"], ("198.51.100.7", "10.0.0.2")),
        ([], ["127.0.1.1", "169.254.3.4"], ("127.0.0.1",)),
        ([], [f"10.0.0.{index}" for index in range(9)], tuple(f"10.0.0.{index}" for index in range(MAX_HOSTS))),
    ],
)
def test_which_hosts_are_told(
    monkeypatch: pytest.MonkeyPatch, leading_out: list[str], of_name: list[str], hosts: tuple[str, ...]
) -> None:
    """The way out first, no repeats, loopback only when there is nothing else, link-local never."""
    monkeypatch.setattr("shoal.transport.address._leading_out", lambda family: leading_out)
    monkeypatch.setattr("shoal.transport.address._of_host_name", lambda family: of_name)
    assert local_hosts("0.0.0.0") == hosts


@pytest.mark.parametrize(
    ("text", "address"), [("localhost:0", "127.0.0.1:0"), ("127.0.0.2:5", "127.0.0.2:5"), ("[::1]:7", "[::1]:7")]
)
def test_a_hosts_name_stands_for_its_address(text: str, address: str) -> None:
    """Records name no hosts but numbers."""
    assert numeric(text) == address


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_name_that_stands_for_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be listened on there."""

    def unknown(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(UsageError, match=r"cannot listen on nowhere\.example:0"):
        numeric("nowhere.example:0")


def test_what_counts_as_one_source() -> None:
    """An IPv4 address is one, however it is written, with all of an IPv6 /64 counted together."""
    assert source_network("10.0.0.1") != source_network("10.0.0.2")
    assert source_network("::ffff:10.0.0.1") == source_network("10.0.0.1")
    assert source_network("2001:db8::1") == source_network("2001:db8::2") != source_network("2001:db8:0:1::1")
    assert source_network("fe80::1%eth0") == source_network("fe80::2")
    assert source_network("") == source_network("nobody") == ""


@pytest.mark.parametrize("text", ["224.0.0.1:0", "255.255.255.255:0", "[ff02::1]:0"])
def test_addresses_of_many(text: str) -> None:
    """No other node could dial a server there."""
    with pytest.raises(UsageError, match="not the address of one machine"):
        numeric(text)


@pytest.mark.parametrize("text", ["::1", "::1:0", "fe80::1"])
def test_an_address_that_lacks_its_brackets(text: str) -> None:
    """The error shows where they stand."""
    with pytest.raises(UsageError, match="in brackets"):
        host_port(text)
