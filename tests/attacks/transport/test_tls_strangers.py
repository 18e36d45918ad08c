"""Strangers at the TLS port: whatever they send, no handler sees them, and the next honest client is served."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.errors import IdentityError
from shoal.transport.address import host_port
from shoal.transport.byte_stream import ByteStream
from shoal.transport.channel import MAX_PENDING_HANDSHAKES
from shoal.transport.tls_certificate import client_context
from shoal.transport.tls_transport import NONCE_BYTES, statement
from tests.unit.transport.nodes import WAIT_S, Net, Node, echo, read_exactly, until

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Victim:
    """A listening node that notes whom its handler has served."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.served: list[str] = []
        self.node: Node

    async def start(self) -> Victim:
        self.node = await self.net.server(self._handle)
        return self

    async def _handle(self, channel: ByteStream) -> None:
        self.served.append(channel.peer)
        await echo(channel)

    @property
    def raw_id(self) -> bytes:
        return bytes.fromhex(self.node.id)

    async def plain(self) -> Stream:
        """A bare TCP connection to it."""
        return await asyncio.open_connection(*host_port(self.node.address, "tls"))

    async def secure(self, context: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TLS connection to it, with nothing proven."""
        host, port = host_port(self.node.address, "tls")
        return await asyncio.open_connection(host, port, ssl=context or client_context(), server_hostname="shoal")

    async def serves_honest_clients(self) -> bool:
        client = self.net.node()
        channel = await client.dial(self.node)
        await channel.send(b"honest")
        answered = await read_exactly(channel, 6) == b"honest"
        await channel.close()
        return answered and self.served[-1] == client.id


@pytest_asyncio.fixture
async def victim() -> AsyncIterator[Victim]:
    """A node under attack."""
    async with Net("tls") as net:
        yield await Victim(net).start()


async def dropped(stream: Stream) -> bytes:
    """What still comes until the server ends the connection, which it must."""
    reader = stream[0]
    data = b""
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(OSError):
            data = await reader.read()
    await hang_up(stream)
    return data


async def hang_up(stream: Stream) -> None:
    """End a connection from the attacker's side."""
    stream[1].close()
    with contextlib.suppress(OSError):
        await stream[1].wait_closed()


async def garbage(victim: Victim) -> None:
    """Bytes that are no TLS at all."""
    stream = await victim.plain()
    stream[1].write(b"GET / HTTP/1.1\r\n\r\n" + bytes(1000))
    await dropped(stream)


async def old_tls(victim: Victim) -> None:
    """A client that knows TLS 1.2 and nothing newer."""
    context = client_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await victim.secure(context)


async def no_proof(victim: Victim) -> None:
    """A client that hangs up where its proof is due."""
    stream = await victim.secure()
    assert len(await stream[0].readexactly(NONCE_BYTES)) == NONCE_BYTES
    await hang_up(stream)


async def half_a_proof(victim: Victim) -> None:
    """A client that hangs up in the middle of its proof."""
    stream = await victim.secure()
    stream[1].write(bytes(40))
    await stream[1].drain()
    await hang_up(stream)


async def proof_with(victim: Victim, sign: Callable[[Ed25519PrivateKey, bytes, bytes], bytes]) -> None:
    """A client that answers the nonce with something else than its signature of the statement."""
    key = Ed25519PrivateKey.generate()
    me = key.public_key().public_bytes_raw()
    stream = await victim.secure()
    nonce = await stream[0].readexactly(NONCE_BYTES)
    stream[1].write(me + sign(key, nonce, me) + b"and what the handler must not see")
    assert await dropped(stream) == b""


async def wrong_signature(victim: Victim) -> None:
    """Sixty-four bytes that sign nothing."""
    await proof_with(victim, lambda key, nonce, me: bytes(64))


async def anothers_signature(victim: Victim) -> None:
    """A good signature by a key that is not the one claimed."""
    other = Ed25519PrivateKey.generate()
    await proof_with(victim, lambda key, nonce, me: other.sign(statement(nonce, victim.raw_id, me)))


async def anothers_nonce(victim: Victim) -> None:
    """A proof for a nonce of another connection, as in a replay."""
    await proof_with(victim, lambda key, nonce, me: key.sign(statement(os.urandom(32), victim.raw_id, me)))


async def anothers_server(victim: Victim) -> None:
    """A proof that its author made for another server, which relays the nonce."""
    await proof_with(victim, lambda key, nonce, me: key.sign(statement(nonce, os.urandom(32), me)))


async def bare_nonce(victim: Victim) -> None:
    """A signature of the nonce alone, as some other protocol might ask for one."""
    await proof_with(victim, lambda key, nonce, me: key.sign(nonce))


async def small_order(victim: Victim) -> None:
    """Keys for which OpenSSL takes a signature that anybody can write down."""
    one = (1).to_bytes(32, "little")
    for key in (one, bytes(31) + b"\x80", bytes(32), bytes.fromhex("ee" + "ff" * 30 + "7f")):
        for point in (one, key):
            stream = await victim.secure()
            stream[1].write(key + point + bytes(32))
            assert len(await dropped(stream)) <= NONCE_BYTES


async def no_point(victim: Victim) -> None:
    """A claimed key that is no point of the curve."""
    stream = await victim.secure()
    stream[1].write(b"\xff" * 32 + bytes(64))
    assert len(await dropped(stream)) <= NONCE_BYTES


async def too_much(victim: Victim) -> None:
    """Megabytes where ninety-six bytes are due."""
    stream = await victim.secure()
    with contextlib.suppress(OSError):
        for _ in range(64):
            stream[1].write(bytes(256 * 1024))
            await stream[1].drain()
    await dropped(stream)


ATTACKS: list[Callable[[Victim], Awaitable[None]]] = [
    garbage,
    old_tls,
    no_proof,
    half_a_proof,
    wrong_signature,
    anothers_signature,
    anothers_nonce,
    anothers_server,
    bare_nonce,
    small_order,
    no_point,
    too_much,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_strangers_are_dropped(victim: Victim, attack: Callable[[Victim], Awaitable[None]]) -> None:
    """The attack reaches no handler, leaves nothing behind, and honest clients are served."""
    for _ in range(3):
        await attack(victim)
    assert victim.served == []
    assert await victim.serves_honest_clients()
    await until(lambda: not getattr(victim.node.transport, "_channels", None))


@pytest.mark.parametrize("secured", [False, True], ids=["before TLS", "after TLS"])
async def test_slow_loris(victim: Victim, secured: bool) -> None:
    """More silent connections than may be pending: an honest client is served while they all hang on."""
    streams = []
    for _ in range(0, MAX_PENDING_HANDSHAKES + 44, 20):
        opened = (victim.secure() if secured else victim.plain() for _ in range(20))
        results = await asyncio.gather(*opened, return_exceptions=True)
        streams += [result for result in results if not isinstance(result, BaseException)]
    assert len(streams) > MAX_PENDING_HANDSHAKES // 2
    for _ in range(3):
        assert await victim.serves_honest_clients()
    for stream in streams:
        await hang_up(stream)


async def test_silence_is_bounded_in_time(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who proves nothing within HANDSHAKE_TIMEOUT_S is dropped, before TLS and after it."""
    monkeypatch.setattr("shoal.transport.tls_transport.HANDSHAKE_TIMEOUT_S", 0.1)
    await dropped(await victim.plain())
    assert len(await dropped(await victim.secure())) == NONCE_BYTES
    assert victim.served == []


async def test_a_server_without_a_node_key_is_not_spoken_to() -> None:
    """A dialler that meets another certificate, or none, sends nothing and says why."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            heard.append(await reader.read())
        writer.transport.abort()

    async with Net("tls") as net:
        impostor, meant = await net.server(echo), net.node()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certify(context)
        server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        client = net.node()
        for address in (f"tls://127.0.0.1:{port}", impostor.address):
            with pytest.raises(IdentityError):
                await client.transport.dial(meant.id, address)
        server.close()
        await server.wait_closed()
        assert not any(heard)


def certify(context: ssl.SSLContext) -> None:
    """An ordinary web server's kind of certificate: on a P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "example")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    shown = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        path.write_bytes(private + shown)
        context.load_cert_chain(path)
