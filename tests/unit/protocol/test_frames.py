"""Frames: round trips, bounds before allocation, hashes."""

from __future__ import annotations

import pytest

from shoal.errors import CorruptFrame, ProtocolError
from shoal.protocol.frames import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, PREFIX_BYTES, FrameDecoder, encode_frame


def test_round_trip_in_one_piece_and_byte_by_byte() -> None:
    """However the bytes are cut, the frames come out."""
    stream = bytes(encode_frame(b"one", b"payload") + encode_frame(b"two") + encode_frame(b"3", b"\0" * 5000))
    expected = [(b"one", b"payload"), (b"two", b""), (b"3", b"\0" * 5000)]
    for size in (1, 7, 1000, len(stream)):
        decoder, frames = FrameDecoder(), []
        for first in range(0, len(stream), size):
            decoder.feed(stream[first : first + size])
            while (frame := decoder.next()) is not None:
                frames.append(frame)
        assert frames == expected
        assert decoder.pending_bytes == 0


@pytest.mark.parametrize(
    ("at", "byte"), [(0, 0), (4, 2), (5, 1), (7, 1), (8, 0), (11, 255), (15, 255)], ids=lambda value: str(value)
)
def test_a_broken_prefix_is_refused_before_more_is_read(at: int, byte: int) -> None:
    """Magic, version, reserved bytes and both lengths are checked on the 24 bytes alone."""
    frame = encode_frame(b"h")
    frame[at] = byte
    decoder = FrameDecoder()
    decoder.feed(bytes(frame[:PREFIX_BYTES]))
    with pytest.raises(ProtocolError):
        decoder.next()


def test_limits() -> None:
    """What is too large is neither sent nor taken; a decoder may take less."""
    for header, payload in ((b"", b""), (b"x" * (MAX_HEADER_BYTES + 1), b""), (b"x", bytes(MAX_PAYLOAD_BYTES + 1))):
        with pytest.raises(ValueError, match="limits"):
            encode_frame(header, payload)
    decoder = FrameDecoder(max_payload_bytes=10)
    decoder.feed(bytes(encode_frame(b"x", bytes(11))))
    with pytest.raises(ProtocolError, match="11 bytes"):
        decoder.next()


@pytest.mark.parametrize("at", [PREFIX_BYTES, PREFIX_BYTES + 3, 16, 23])
def test_changed_bytes_are_the_networks_fault(at: int) -> None:
    """A flipped bit in header, payload or hash is found."""
    frame = encode_frame(b"hd", b"payload")
    frame[at] ^= 1
    decoder = FrameDecoder()
    decoder.feed(bytes(frame))
    with pytest.raises(CorruptFrame):
        decoder.next()


def test_a_whole_frame_is_not_copied_into_a_buffer() -> None:
    """Bytes that find nothing before them are cut where they lie, whether they are one frame, several or a part."""
    one, two = bytes(encode_frame(b"one", b"payload")), bytes(encode_frame(b"two", b"x" * 100))
    decoder = FrameDecoder()
    for data in (one, two + one, two + one[:10]):
        decoder.feed(data)
        assert decoder._buffer is data
        while decoder.next() is not None:
            pass
    decoder.feed(one[10:])
    assert decoder.next() == (b"one", b"payload")
    decoder.feed(two)
    assert decoder._buffer is two


def test_the_rest_is_left_to_another_reader() -> None:
    """What is not part of a frame given out, whole frames included; nothing is kept."""
    decoder = FrameDecoder()
    rest = bytes(encode_frame(b"two") + encode_frame(b"three")[:7])
    decoder.feed(bytes(encode_frame(b"one")) + rest)
    assert decoder.next() == (b"one", b"")
    assert decoder.take_rest() == rest
    assert (decoder.pending_bytes, decoder.next()) == (0, None)


def test_limits_may_change_between_frames() -> None:
    """A frame behind the last one given out is judged by the limit of the time when it is asked for."""
    decoder = FrameDecoder(max_payload_bytes=0)
    decoder.feed(bytes(encode_frame(b"one") + encode_frame(b"two", b"payload")))
    assert decoder.next() == (b"one", b"")
    decoder.allow_payload(7)
    assert decoder.next() == (b"two", b"payload")
