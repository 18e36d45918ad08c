"""A tiny TCP service that answers every connection with one signed record (docs/wire.md, "Hello").

The DHT says where somebody announced, not who it is; this says who. Neither side sends anything else.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from types import TracebackType
from typing import cast

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import DialError, ProtocolError, UsageError
from shoal.swarm.directory.records import MAX_RECORD_BYTES, SignedRecord, verify_record
from shoal.transport.address import join_host_port, source
from shoal.transport.token_bucket import TokenBuckets

DEADLINE_S = 2.0
"""For the whole conversation, on both sides."""

MAX_CONNECTIONS = 64
MAX_PER_SOURCE = 10
PER_SOURCE_PER_S = 1.0
"""Answers at once to one IPv4 address, or one IPv6 /64, and how many more each second."""

MAX_SOURCES = 1024
"""Sources remembered; beyond that the one that was heard of longest ago is forgotten."""

_PREFIX = struct.Struct("<4sBxH")
_MAGIC = b"SHOL"
_VERSION = 1


def encode_hello(record: bytes) -> bytes:
    """The answer for these record bytes: magic, version, zero, length (u16, little-endian), record."""
    return _PREFIX.pack(_MAGIC, _VERSION, len(record)) + record


class _Answer(asyncio.Protocol):
    """One connection: the record is written, nothing is read, and the deadline ends what does not end by itself."""

    def __init__(self, server: HelloServer) -> None:
        self._server = server
        self._timer: asyncio.TimerHandle | None = None
        self._tcp: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: answer at once or not at all."""
        tcp = cast(asyncio.Transport, transport)
        tcp.pause_reading()
        answer = self._server.admit(tcp)
        if answer is None:
            tcp.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(DEADLINE_S, tcp.abort)
        tcp.write(answer)
        tcp.close()
        self._tcp = tcp

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
        if self._tcp is not None:
            self._server.open.discard(self._tcp)


class HelloServer:
    """Answers on a host and port with what `record` returns, if anything; port 0 takes a free one. Use with `async with`."""

    def __init__(
        self, host: str, port: int, record: Callable[[], SignedRecord | None], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._host = host
        self._record = record
        self._answers: TokenBuckets[str] = TokenBuckets(PER_SOURCE_PER_S, MAX_PER_SOURCE, clock, MAX_SOURCES)
        self._server: asyncio.Server | None = None
        self.port = port
        self.open: set[asyncio.Transport] = set()

    async def __aenter__(self) -> HelloServer:
        """Start; raises UsageError when the address cannot be bound."""
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Answer(self), self._host, self.port, backlog=MAX_CONNECTIONS
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot answer on {join_host_port(self._host, self.port)}: {error}") from error
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop answering. Closing twice is harmless."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for tcp in list(self.open):
                tcp.abort()
            await server.wait_closed()

    def admit(self, tcp: asyncio.Transport) -> bytes | None:
        """What to answer on a new connection; None when there are too many, in all or from this source."""
        peer = tcp.get_extra_info("peername")
        if peer is None or len(self.open) >= MAX_CONNECTIONS or not self._answers.try_take(source(peer[0])):
            return None
        signed = self._record()
        if signed is None:
            return None
        self.open.add(tcp)
        return encode_hello(signed.data)


async def ask_hello(host: str, port: int, clock: Clock = SYSTEM_CLOCK, deadline_s: float = DEADLINE_S) -> SignedRecord:
    """The record of whoever answers at this address, verified.

    Reads no more than the prefix and MAX_RECORD_BYTES. Raises DialError when nobody answers in time, ProtocolError when
    something else than a hello comes, RecordError when the record is malformed, forged or expired.
    """
    where = join_host_port(host, port)
    try:
        async with asyncio.timeout(deadline_s):
            data = await _read(host, port, where)
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        raise DialError(f"no hello from {where}: {str(error) or f'silent for {deadline_s:g} s'}") from error
    return verify_record(data, clock.wall())


async def _read(host: str, port: int, where: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_RECORD_BYTES)
    try:
        magic, version, length = _PREFIX.unpack(await reader.readexactly(_PREFIX.size))
        if (magic, version) != (_MAGIC, _VERSION) or length > MAX_RECORD_BYTES:
            raise ProtocolError(f"{where} does not say hello")
        return await reader.readexactly(length)
    finally:
        writer.transport.abort()  # there is nothing to flush, and a stranger's goodbye is not waited for
