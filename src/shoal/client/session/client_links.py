"""The client's own ends of links: dial a hop, attach to its session there, and again when the connection breaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from shoal.client.session.hop_client import HopClient
from shoal.errors import NetworkError, ProtocolError, ShoalError
from shoal.links.row_link import RowLog, RowReceiver, RowSender
from shoal.protocol.journal import Journal, RowChunk
from shoal.protocol.messages import MAX_POSITION, Attach, LinkGrant, RowsFrame
from shoal.protocol.row_stream import Receiver, Sender
from shoal.transport.frame_channel import FrameChannel

REDIAL_FIRST_S = 0.05
REDIAL_MOST_S = 1.0

_Serve = Callable[[FrameChannel], Awaitable[None]]


async def keep_sending(control: HopClient, grant: LinkGrant, outlet: RowSender) -> None:
    """Feed a hop until cancelled. A hop that refuses is lost; one that cannot be reached is its control channel's affair."""

    async def serve(channel: FrameChannel) -> None:
        await channel.send(Attach("send", control.keys.session, 0, grant.token, grant.generation))
        await outlet.serve(channel)

    await _keep(control, serve)


async def keep_receiving(control: HopClient, grant: LinkGrant, inlet: RowReceiver, max_frame_bytes: int) -> None:
    """Take a hop's output until cancelled; otherwise the same."""

    async def serve(channel: FrameChannel) -> None:
        session = control.keys.session
        have = inlet.attach(channel)
        channel.allow_payload(max_frame_bytes)
        await channel.send(Attach("receive", session, 0, grant.token, grant.generation, have.epoch, have.position))
        await inlet.serve(channel)

    await _keep(control, serve)


async def _keep(control: HopClient, serve: _Serve) -> None:
    wait_s = REDIAL_FIRST_S
    while control.lost is None:
        began = control.clock.monotonic()
        try:
            async with await control.dial() as channel:
                await serve(channel)
        except NetworkError:
            pass  # dialled again below
        except ShoalError as error:
            control.fail(error)
            return
        wait_s = REDIAL_FIRST_S if control.clock.monotonic() - began > REDIAL_MOST_S else min(2 * wait_s, REDIAL_MOST_S)
        await control.clock.sleep(wait_s)


class Bridge:
    """Carries rows from a hop to the next one, because the two cannot reach each other. Begins where the receiver is."""

    def __init__(self, row_bytes: int, epoch: int, position: int) -> None:
        self.inlet = RowReceiver(Receiver(epoch, position), self)
        self.feed = RowLog(Journal(row_bytes, MAX_POSITION, Sender(epoch, position)))
        self._row_bytes = row_bytes

    def check(self, rows: RowsFrame, payload: bytes) -> None:
        """RowSink: the form of a frame; what it holds is for the next hop to judge."""
        if rows.elided or len(payload) != rows.count * self._row_bytes:
            raise ProtocolError(f"{rows.count} rows came with {len(payload)} bytes")

    def truncate(self, position: int) -> None:
        """RowSink: rows from `position` on are void."""
        self.feed.rewind(self.inlet.receiver.epoch, position)

    def ready(self, rows: RowsFrame) -> bool:
        """RowSink: whatever a session may hold is carried."""
        return True

    def take_now(self, rows: RowsFrame, payload: bytes) -> None:
        """RowSink: rows to hand on."""
        self._hand_on(rows, payload, 0)

    async def take(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        """RowSink: the same, without the first `skip` rows."""
        self._hand_on(rows, payload, skip)

    def _hand_on(self, rows: RowsFrame, payload: bytes, skip: int) -> None:
        needed_from = rows.position if rows.reply < 0 else rows.position + rows.count - rows.reply
        data = payload[skip * self._row_bytes :]
        self.feed.append(RowChunk(rows.position + skip, rows.count - skip, data, needed_from, rows.trace))
