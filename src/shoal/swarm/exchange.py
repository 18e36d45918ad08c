"""Two members exchange records: digest, records, records (docs/wire.md, "Records")."""

from __future__ import annotations

from shoal.net.framed import STRANGER_PAYLOAD_BYTES, FrameChannel
from shoal.swarm.directory import Directory, pack_records, unpack_records
from shoal.types import PEER_ID_BYTES
from shoal.wire.messages import Digest, Records

_MAX_WANT = 4096
_RECORDS_BYTES = STRANGER_PAYLOAD_BYTES - _MAX_WANT * PEER_ID_BYTES


async def ask(channel: FrameChannel, directory: Directory) -> int:
    """The dialler's side; returns how many records were news. Raises what the channel raises."""
    await channel.send(Digest(), directory.digest())
    message, payload = await channel.expect(Records)
    want, records = unpack_records(message.want, payload)
    news = sum(directory.add(data) for data in records)
    await channel.send(Records(), pack_records([], directory.select(want), _RECORDS_BYTES))
    return news


async def answer(channel: FrameChannel, directory: Directory, digest: bytes) -> int:
    """The acceptor's side, after the digest came; returns how many records were news."""
    want, lacks = directory.answer(digest)
    want = want[:_MAX_WANT]
    await channel.send(Records(len(want)), pack_records(want, lacks, STRANGER_PAYLOAD_BYTES))
    message, payload = await channel.expect(Records)
    return sum(directory.add(data) for data in unpack_records(message.want, payload)[1])
