"""Two members exchange records: digest, records, records (docs/wire.md, "Records")."""

from __future__ import annotations

import asyncio

from shoal.errors import ChannelClosed
from shoal.protocol.messages import EXCHANGE, MAX_WANT, RecordBatch, RecordDigest
from shoal.swarm.directory.directory import Directory, pack_records, unpack_records
from shoal.transport.frame_channel import STRANGER_PAYLOAD_BYTES, FrameChannel
from shoal.types import PEER_ID_BYTES

EXCHANGE_TIMEOUT_S = 10.0
"""How long the other side may take for one exchange, so that a silent one holds nobody up."""

_RECORDS_BYTES = STRANGER_PAYLOAD_BYTES - MAX_WANT * PEER_ID_BYTES


async def ask(
    channel: FrameChannel, directory: Directory, fingerprint: str = "", timeout_s: float = EXCHANGE_TIMEOUT_S
) -> int:
    """The dialler's side; returns how many records were news. Servers of the model with this fingerprint are told of first.

    Raises ChannelClosed for a silent peer, and what the channel raises.
    """
    try:
        async with asyncio.timeout(timeout_s):
            message, payload = await channel.ask(EXCHANGE, RecordDigest(fingerprint, directory.now), directory.digest())
            want, entries = unpack_records(message.want, payload)
            news = directory.take(entries, channel.peer, channel.source, message.sent_at, believed=True)
            directory.answered(channel.peer)
            own = pack_records([], directory.select(want), _RECORDS_BYTES)
            await channel.send(RecordBatch(sent_at=directory.now), own)
    except TimeoutError as error:
        raise ChannelClosed(f"peer {channel.peer[:8]} took more than {timeout_s:g} s to exchange records") from error
    return news


async def answer(
    channel: FrameChannel,
    directory: Directory,
    digest: bytes,
    fingerprint: str = "",
    timeout_s: float = EXCHANGE_TIMEOUT_S,
) -> int:
    """The acceptor's side, after the digest came; returns how many records were news. Raises what `ask` raises, and
    ServerFull for a peer that exchanges too often."""
    directory.begin_exchange(channel.peer, channel.source)
    want, lacks = directory.answer(digest, fingerprint)
    want = want[:MAX_WANT]
    try:
        async with asyncio.timeout(timeout_s):
            await channel.send(RecordBatch(len(want), directory.now), pack_records(want, lacks, STRANGER_PAYLOAD_BYTES))
            message, payload = await channel.expect(RecordBatch)
    except TimeoutError as error:
        raise ChannelClosed(f"peer {channel.peer[:8]} took more than {timeout_s:g} s to exchange records") from error
    entries = unpack_records(message.want, payload)[1]
    return directory.take(entries, channel.peer, channel.source, message.sent_at)
