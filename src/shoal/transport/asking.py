"""One question to a node, on a channel of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from shoal.clock import SYSTEM_CLOCK, Clock
from shoal.errors import NetworkError
from shoal.protocol.messages import Message, Question
from shoal.transport.dialler import Dialler
from shoal.transport.frame_channel import STRANGER_PAYLOAD_BYTES, FrameChannel
from shoal.types import PeerId

ANSWER_TIMEOUT_S = 10.0
"""How long a node may take to be dialled and to answer."""

A = TypeVar("A", bound=Message)
Q = TypeVar("Q", bound=Message)


class TimedAnswer(NamedTuple, Generic[A]):
    """An answer, its payload, and the time from the question to it on an open channel."""

    message: A
    payload: bytes
    round_trip_s: float


async def ask(
    dialler: Dialler,
    contact: tuple[str, Sequence[str]],
    question: Question[Q, A],
    request: Q,
    *,
    deadline_s: float = ANSWER_TIMEOUT_S,
    max_payload_bytes: int = STRANGER_PAYLOAD_BYTES,
    clock: Clock = SYSTEM_CLOCK,
) -> TimedAnswer[A]:
    """Dial `contact` (a node's id and addresses), ask and hang up.

    Raises what the dial raises, NetworkError when no answer comes within `deadline_s`, the error that a refusal stands for,
    and ProtocolError for any other message.
    """
    peer, addresses = PeerId(contact[0]), contact[1]
    try:
        async with asyncio.timeout(deadline_s):
            async with FrameChannel(await dialler.dial(peer, addresses), max_payload_bytes) as channel:
                asked_at = clock.monotonic()
                message, payload = await channel.ask(question, request)
                return TimedAnswer(message, payload, clock.monotonic() - asked_at)
    except TimeoutError as error:
        raise NetworkError(f"peer {peer[:8]} has not answered for {deadline_s:g} s") from error
