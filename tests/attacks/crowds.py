"""Crowds of made-up servers: each has a key of its own, and all promise to serve a whole model faster than anybody else.

They come from addresses of their own, 127.0.0.2 and up, while honest servers are on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from shoal.clock import SYSTEM_CLOCK
from shoal.errors import ServerFull, ShoalError
from shoal.protocol.messages import FIRST, Describe, Description, GetStatus, RecordBatch, RecordDigest, Status
from shoal.protocol.refusals import refusal
from shoal.swarm.directory import exchange
from shoal.swarm.directory.directory import Directory, pack_records
from shoal.swarm.directory.records import RECORD_LIFETIME_S, ServerRecord, sign_record
from shoal.swarm.identity import Identity
from shoal.transport.channel import Channel
from shoal.transport.frame_channel import STRANGER_PAYLOAD_BYTES, FrameChannel
from shoal.transport.tls_channel import TlsChannel
from shoal.transport.tls_transport import TlsTransport, _Plain
from shoal.types import ModelSpec, PeerId, Span

PROMISED = Status(0, 1000, 0, 1 << 30, 1 << 30, 1e9, 1e9, 1e6)
AT_ONCE = 16


def promising(key: Identity, model: ModelSpec, addresses: Sequence[str]) -> ServerRecord:
    """The record of a server that has the whole model, much room and great speed."""
    now = time.time()
    return ServerRecord(
        key.peer,
        int(now * 1000),
        now,
        now + RECORD_LIFETIME_S,
        tuple(addresses),
        model,
        Span(0, model.num_blocks),
        decode_rows_per_s=1e9,
        prefill_rows_per_s=1e9,
        free_tokens=1 << 30,
    )


class FromAddress(TlsTransport):
    """TLS that also dials from its own address."""

    def __init__(self, key: Identity, host: str) -> None:
        super().__init__(key.key, f"{host}:0")
        self._host = host

    async def dial(self, peer: PeerId, address: str) -> TlsChannel:
        """Transport."""
        host, port = address.removeprefix("tls://").rsplit(":", 1)
        raw, _ = await asyncio.get_running_loop().create_connection(
            lambda: _Plain(self._dialled), host, int(port), local_addr=(self._host, 0)
        )
        channel = self._channel(raw)
        await channel.secure(self._dialling_context, server_side=False)
        await self._authenticate(channel, peer)
        return channel


async def show(transport: TlsTransport, target: ServerRecord, records: Iterable[bytes]) -> None:
    """Hand records over in one exchange, and hang up."""
    channel = FrameChannel(await transport.dial(PeerId(target.peer), target.addresses[0]))
    with contextlib.suppress(ShoalError):
        await channel.send(RecordDigest(), b"")
        await channel.expect(RecordBatch)
        await channel.send(RecordBatch(), pack_records([], list(records), STRANGER_PAYLOAD_BYTES))
    await channel.close()


async def introduce_themselves(keys: Sequence[Identity], host: str, port: int, target: ServerRecord) -> None:
    """Every key comes itself, from one address, with a record that leads to one port there."""
    places = asyncio.Semaphore(AT_ONCE)

    async def come(key: Identity) -> None:
        async with places:
            transport = FromAddress(key, host)
            record = promising(key, target.model, [f"tls://{host}:{port}"])
            await show(transport, target, [sign_record(record, key).data])
            await transport.close()

    await asyncio.gather(*map(come, keys))


@contextlib.asynccontextmanager
async def mute(host: str) -> AsyncIterator[int]:
    """A port that takes every connection and never says a word."""
    open_writers: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(hold, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_writers:
            writer.transport.abort()


class Refuser:
    """A made-up server that is there: it exchanges records, tells a great status, and refuses every session.

    `claims` are addresses of others that it calls its own too.
    """

    def __init__(self, host: str, model: ModelSpec, source: str, claims: Sequence[str] = ()) -> None:
        self.key = Identity.generate()
        self.sessions_refused = 0
        self._model = model
        self._claims = tuple(claims)
        self._description = Description(model.name, model.fingerprint, source)
        self._transport = FromAddress(self.key, host)
        self._directory = Directory(SYSTEM_CLOCK, self.key.peer)

    async def begin(self, targets: Sequence[ServerRecord]) -> None:
        """Listen, and come to these servers."""
        await self._transport.listen(self._answer)
        record = promising(self.key, self._model, (*self._transport.addresses, *self._claims))
        signed = sign_record(record, self.key).data
        self._directory.add(signed)
        for target in targets:
            await show(self._transport, target, [signed])

    async def _answer(self, channel: Channel) -> None:
        frames = FrameChannel(channel)
        message, payload = await frames.receive(FIRST)
        if isinstance(message, RecordDigest):
            await exchange.answer(frames, self._directory, payload)
        elif isinstance(message, GetStatus):
            await frames.send(PROMISED)
        elif isinstance(message, Describe):
            await frames.send(self._description, msgspec.json.encode({}))
        else:
            self.sessions_refused += 1
            await frames.send(refusal(ServerFull("not now", retry_after=0.1)))

    async def close(self) -> None:
        """Be gone."""
        await self._transport.close()
