"""No bytes do anything to the codec but come out as a message or be refused."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import CorruptFrame, ProtocolError
from shoal.protocol.frames import FrameDecoder, encode_frame
from shoal.protocol.messages import (
    AnyMessage,
    Attach,
    HopTrace,
    LinkGrant,
    Open,
    Refusal,
    Rewind,
    RowsFrame,
    decode_message,
    encode_message,
)
from shoal.swarm.directory.directory import pack_records, unpack_records
from shoal.types import PeerId, Span

counters = st.integers(0, 1 << 48)
positions = st.integers(0, 1 << 24)
secrets = st.binary(min_size=16, max_size=16)
times = st.floats(0, 1e9)
traces = st.lists(st.builds(HopTrace, times, times, times, st.integers(0, 9), st.integers(0, 9)), max_size=5)
links = st.builds(LinkGrant, counters, st.just("ab" * 32), secrets)
messages: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(RowsFrame, counters, positions, st.integers(1, 4096), counters, trace=traces.map(tuple)),
    st.builds(Rewind, counters, positions, counters),
    st.builds(Attach, st.sampled_from(["control", "send", "receive"]), secrets, counters, secrets),
    st.builds(Refusal, st.sampled_from(["full", "span"]), st.text(max_size=512), st.floats(0, 100)),
    st.builds(Open, secrets, counters, secrets, st.text(max_size=99), st.builds(Span, counters, counters),
              st.integers(1, 1 << 24), links),
)  # fmt: skip


@given(messages, st.binary(max_size=200))
def test_messages_round_trip(message: AnyMessage, payload: bytes) -> None:
    """What is encoded is what is decoded."""
    decoder = FrameDecoder()
    decoder.feed(bytes(encode_frame(encode_message(message), payload)))
    frame = decoder.next()
    assert frame is not None
    assert decode_message(frame[0]) == message
    assert frame[1] == payload


@given(st.binary(max_size=300))
@example(b"\x81\xa4type\xa4rows")
def test_any_header_is_a_message_or_refused(header: bytes) -> None:
    """Decoding never raises anything but ProtocolError."""
    try:
        assert decode_message(header) is not None
    except ProtocolError as error:
        assert "message" in str(error)


@given(st.data(), messages)
def test_damaged_messages(data: st.DataObject, message: AnyMessage) -> None:
    """A header with some bytes changed is a message or refused."""
    header = bytearray(encode_message(message))
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_message(bytes(header)) is not None
    except ProtocolError as error:
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
