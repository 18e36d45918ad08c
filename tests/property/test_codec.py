"""No bytes do anything to the codec but come out as a message or be refused."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import CorruptFrame, InvalidMessage, ProtocolError, UnknownQuestion
from shoal.protocol.frames import FrameDecoder, encode_frame
from shoal.protocol.messages import (
    DIRECTORY,
    FIRST,
    GREETING,
    LINK,
    MEMBERSHIP,
    SESSION,
    Message,
    Vocabulary,
    encode_message,
    only,
    tag,
)
from shoal.swarm.directory.directory import pack_records, unpack_records
from shoal.types import PeerId
from tests.support.any_message import MESSAGES
from tests.support.struct_strategies import breaches, numbers_without_bounds, sizes_at_most, values

EVERY = pytest.mark.parametrize("kind", MESSAGES, ids=tag)
messages: st.SearchStrategy[Message] = st.one_of(*map(values, MESSAGES))
places = st.sampled_from([FIRST, GREETING, DIRECTORY, SESSION, LINK, MEMBERSHIP, *map(only, MESSAGES)])


@EVERY
@given(data=st.data(), payload=st.binary(max_size=200))
def test_messages_round_trip(kind: type[Message], data: st.DataObject, payload: bytes) -> None:
    """What is encoded within its bounds is what is decoded where it may come."""
    message = data.draw(values(kind))
    decoder = FrameDecoder()
    decoder.feed(bytes(encode_frame(encode_message(message), payload)))
    frame = decoder.next()
    assert frame is not None
    for place in (only(kind), *(one for one in (FIRST, GREETING, DIRECTORY, SESSION, LINK) if kind in one.types)):
        assert place.decode(frame[0]) == message
    assert frame[1] == payload


@EVERY
def test_every_field_has_bounds(kind: type[Message]) -> None:
    """No number, text or list of a message can be of any size."""
    assert numbers_without_bounds(kind) == []


@EVERY
def test_bounds_hold_before_a_message_leaves(kind: type[Message]) -> None:
    """A message with any field just out of its bounds is not encoded; the largest one is, and fits a frame."""
    sound = sizes_at_most(kind, "x")
    encode_frame(encode_message(sound))
    for field, wrong in breaches(kind, sound):
        with pytest.raises(InvalidMessage, match=kind.__name__):
            pytest.fail(f"{field} of {wrong} was encoded: {encode_message(wrong)!r}")


@given(st.binary(max_size=300), places)
@example(b"\x81\xa4type\xa4rows", LINK)
def test_any_header_is_a_message_or_refused(header: bytes, place: Vocabulary[Message]) -> None:
    """Decoding never raises anything but the wire's errors."""
    try:
        assert place.decode(header) is not None
    except (ProtocolError, UnknownQuestion) as error:
        assert "message" in str(error)


@given(st.data(), messages, places)
def test_damaged_messages(data: st.DataObject, message: Message, place: Vocabulary[Message]) -> None:
    """A header with some bytes changed is a message that may come there, or refused."""
    header = bytearray(encode_message(message))
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    for one in (place, only(type(message))):
        try:
            assert type(one.decode(bytes(header))) in one.types
        except (ProtocolError, UnknownQuestion) as error:
            assert "message" in str(error)


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_any_stream_is_frames_or_refused(pieces: list[bytes]) -> None:
    """The decoder holds no more than it was fed and raises only its own errors."""
    decoder, fed = FrameDecoder(), 0
    try:
        for piece in pieces:
            decoder.feed(piece)
            fed += len(piece)
            while decoder.next() is not None:
                pass
            assert decoder.pending_bytes <= fed
    except (ProtocolError, CorruptFrame) as error:
        assert str(error)


@given(st.integers(0, 4096), st.binary(max_size=500))
def test_any_records_payload_is_records_or_refused(want: int, payload: bytes) -> None:
    """Lengths inside a payload are checked against it."""
    try:
        ids, records = unpack_records(want, payload)
        assert len(ids) == want
        assert sum(map(len, records)) <= len(payload)
    except ProtocolError as error:
        assert str(error)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5), st.lists(st.binary(max_size=1024), max_size=5))
def test_records_round_trip(ids: list[bytes], records: list[bytes]) -> None:
    """Ids and records come out as they went in."""
    peers = [PeerId(one.hex()) for one in ids]
    assert unpack_records(len(peers), pack_records(peers, records, 1 << 20)) == (peers, records)
