"""The hello: one record, to a few at a time, and nothing a stranger says or leaves out hurts."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from shoal.errors import DialError, NetworkError, ProtocolError, RecordError, UsageError
from shoal.swarm.directory.records import MAX_RECORD_BYTES
from shoal.swarm.discovery.hello import (
    MAX_CONNECTIONS,
    MAX_PER_SOURCE,
    PER_SOURCE_PER_S,
    HelloServer,
    ask_hello,
    encode_hello,
)
from shoal.swarm.identity import Identity
from tests.records import signed_record
from tests.support.virtual_clock import VirtualClock

HOST = "127.0.0.1"
ME = Identity.generate()
RECORD = signed_record(ME)


@pytest.fixture(autouse=True)
def fresh_record() -> None:
    """A record lives for five minutes, and all tests together may take longer."""
    globals()["RECORD"] = signed_record(ME)


Speaker = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def stranger(speak: Speaker) -> AsyncIterator[int]:
    """A TCP server that says what it likes; gives its port."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
            writer.close()
            await writer.wait_closed()
        except OSError:
            return
        finally:
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # aborted connections are closed in the loop's next turn


def saying(data: bytes) -> Speaker:
    """Says just this and hangs up."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return speak


async def test_a_hello_is_one_verified_record() -> None:
    """Whoever connects gets the record as it is now, and the connection ends."""
    current = [RECORD]
    async with HelloServer(HOST, 0, lambda: current[0]) as server:
        assert await ask_hello(HOST, server.port) == RECORD
        current[0] = signed_record(ME, sequence=2)
        assert (await ask_hello(HOST, server.port)).record.sequence == 2
        reader, writer = await asyncio.open_connection(HOST, server.port)
        assert await reader.read() == encode_hello(current[0].data)
        writer.close()
    with pytest.raises(DialError):
        await ask_hello(HOST, server.port)
    await server.close()


async def test_what_a_stranger_says_is_not_read() -> None:
    """Bytes sent to a hello change nothing: it answers others as before."""
    async with HelloServer(HOST, 0, lambda: RECORD) as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(b"\x13BitTorrent protocol" + bytes(100_000))
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read()) <= MAX_RECORD_BYTES + 8
        writer.transport.abort()
        assert await ask_hello(HOST, server.port) == RECORD


async def test_a_source_gets_a_few_answers() -> None:
    """One address is answered MAX_PER_SOURCE times in a window; another one is still answered, and later the first again."""
    clock = VirtualClock()
    async with HelloServer(HOST, 0, lambda: RECORD, clock) as server:
        for _ in range(MAX_PER_SOURCE):
            await ask_hello(HOST, server.port)
        with pytest.raises(DialError):
            await ask_hello(HOST, server.port)
        reader, writer = await asyncio.open_connection(HOST, server.port, local_addr=("127.0.0.2", 0))
        assert await reader.read()
        writer.close()
        await clock.advance(1.0 / PER_SOURCE_PER_S)
        assert await ask_hello(HOST, server.port) == RECORD


async def test_connections_at_once_are_bounded() -> None:
    """Beyond MAX_CONNECTIONS a connection is dropped without an answer."""
    server = HelloServer(HOST, 0, lambda: RECORD)
    async with server:
        server.open.update(object() for _ in range(MAX_CONNECTIONS))  # type: ignore[misc]
        with pytest.raises(DialError):
            await ask_hello(HOST, server.port)
        server.open.clear()
        assert await ask_hello(HOST, server.port) == RECORD


async def test_a_port_in_use_is_a_mistake() -> None:
    """The address that could not be bound is named."""
    async with HelloServer(HOST, 0, lambda: RECORD) as server:
        with pytest.raises(UsageError, match=str(server.port)):
            await HelloServer(HOST, server.port, lambda: RECORD).__aenter__()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", DialError),
        (b"SHOL", DialError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError),
        (b"SHOL\x02\x00\x01\x00x", ProtocolError),
        (b"SHOL\x01\x00\xff\xff" + bytes(70_000), ProtocolError),
        (encode_hello(RECORD.data)[:-1], DialError),
        (encode_hello(RECORD.data[:-1] + b"\0"), RecordError),
        (encode_hello(b""), RecordError),
        (encode_hello(signed_record(ME, expires_at=1.0).data), RecordError),
        (encode_hello(bytes(MAX_RECORD_BYTES)), RecordError),
    ],
)
async def test_lies_are_named(data: bytes, error: type[Exception]) -> None:
    """Anything but one valid record raises what it is."""
    async with stranger(saying(data)) as port:
        with pytest.raises(error):
            await ask_hello(HOST, port)


async def test_random_bytes_are_no_hello() -> None:
    """Whatever random bytes a stranger says, nothing but our own errors comes of it."""
    for size in (1, 8, 9, 100, 2000):
        async with stranger(saying(os.urandom(size))) as port:
            with pytest.raises((NetworkError, ProtocolError, RecordError)):
                await ask_hello(HOST, port)


async def test_silence_ends_at_the_deadline() -> None:
    """Strangers that say nothing, or drip, or never stop, cost no more than the deadline and the record's size."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in encode_hello(RECORD.data):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    for speak in (silent, drip):
        async with stranger(speak) as port:
            with pytest.raises(DialError, match="silent"):
                await ask_hello(HOST, port, deadline_s=0.1)
    async with stranger(saying(encode_hello(RECORD.data) + bytes(1 << 20))) as port:
        assert await ask_hello(HOST, port) == RECORD
