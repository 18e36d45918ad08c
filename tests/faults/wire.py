"""What this process sends, changed on its way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.protocol.messages import Message
from shoal.transport.frame_channel import FrameChannel

Payload = bytes | bytearray | memoryview
Sent = tuple[Message, Payload]


def on_the_way_out(monkeypatch: pytest.MonkeyPatch, change: Callable[[Message, Payload], Sent]) -> None:
    """Every message that a node of this process sends goes through `change` first."""
    send = FrameChannel.send_nowait

    def changed(channel: FrameChannel, message: Message, payload: Payload = b"") -> None:
        send(channel, *change(message, payload))

    monkeypatch.setattr(FrameChannel, "send_nowait", changed)
