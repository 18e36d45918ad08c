"""Records and credit: what goes in comes out, within bounds, and nobody waits for ever."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ProtocolError
from shoal.transport.iroh_credit import (
    MAX_RECORD_BYTES,
    REPORT_BYTES,
    REPORT_RECORDS,
    WINDOW_BYTES,
    WINDOW_RECORDS,
    ReadCredit,
    RecordDecoder,
    SendWindow,
    encode_record,
)

records = st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 1000)), max_size=12)


@given(records, st.lists(st.integers(1, 30), max_size=60))
def test_records_survive_any_cut(sent: list[tuple[bytes, int]], cuts: list[int]) -> None:
    """Data, credit and sizes come out of a stream that arrives in pieces of any size."""
    stream = b"".join(encode_record(data, credit) for data, credit in sent)
    decoder, data, credit, sizes = RecordDecoder(), b"", 0, []
    for cut in [*cuts, len(stream)]:
        got = decoder.feed(stream[:cut])
        stream = stream[cut:]
        data, credit, sizes = data + got[0], credit + got[1], sizes + got[2]
    assert data == b"".join(record[0] for record in sent)
    assert credit == sum(record[1] for record in sent)
    assert sizes == [len(record[0]) for record in sent if record[0]]
    assert decoder.between_records


def test_where_a_stream_may_end() -> None:
    """Not within a header, and not within data."""
    record = encode_record(b"abc", 0)
    for cut in range(1, len(record)):
        decoder = RecordDecoder()
        decoder.feed(record[:cut])
        assert not decoder.between_records


def test_longest_record() -> None:
    """A length over the bound is refused before its data is taken."""
    RecordDecoder().feed(struct.pack("<II", MAX_RECORD_BYTES, 0))
    with pytest.raises(ProtocolError, match=str(MAX_RECORD_BYTES + 1)):
        RecordDecoder().feed(struct.pack("<II", MAX_RECORD_BYTES + 1, 0))


def test_window_in_bytes() -> None:
    """A record leaves only when the window has room for it; credit makes room."""
    window = SendWindow()
    for _ in range(WINDOW_BYTES // MAX_RECORD_BYTES):
        assert window.allowed(10 * WINDOW_BYTES) == MAX_RECORD_BYTES
        window.sent(MAX_RECORD_BYTES)
    assert window.allowed(1) == 0
    window.credit(10)
    assert window.allowed(10) == 10
    assert window.allowed(11) == 0


def test_window_in_records() -> None:
    """However small, only so many records may be unread; one read in part counts whole."""
    window = SendWindow()
    for _ in range(WINDOW_RECORDS):
        assert window.allowed(2) == 2
        window.sent(2)
    assert window.allowed(2) == 0
    window.credit(1)
    assert window.allowed(2) == 0
    window.credit(1)
    assert window.allowed(2) == 2


def test_impossible_credit() -> None:
    """Nobody can have read what was not sent."""
    window = SendWindow()
    window.sent(5)
    with pytest.raises(ProtocolError, match="6"):
        window.credit(6)


def test_credit_is_due() -> None:
    """After so many bytes, or so many records, and not before."""
    by_bytes, by_records = ReadCredit(), ReadCredit()
    by_bytes.arrived([REPORT_BYTES])
    by_bytes.read(REPORT_BYTES - 1)
    assert not by_bytes.due
    by_bytes.read(1)
    assert by_bytes.due
    assert by_bytes.take() == REPORT_BYTES
    assert not by_bytes.due
    by_records.arrived([1] * REPORT_RECORDS)
    by_records.read(REPORT_RECORDS - 1)
    assert not by_records.due
    by_records.read(1)
    assert by_records.due


steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.one_of(st.integers(1, 64), st.integers(1, 3 * MAX_RECORD_BYTES))),
        st.tuples(st.just("read"), st.integers(1, WINDOW_BYTES)),
    ),
    max_size=400,
)


@given(steps)
def test_a_reader_that_reads_everything_frees_the_sender(plan: list[tuple[str, int]]) -> None:
    """Whatever was sent and read in whatever order: bounds hold, and after reading all a full record fits."""
    window, credit = SendWindow(), ReadCredit()
    unread = unread_records = 0

    def report() -> None:
        if credit.due:
            window.credit(credit.take())

    for action, size in plan:
        if action == "send" and (allowed := window.allowed(size)):
            window.sent(allowed)
            credit.arrived([allowed])
            unread += allowed
            unread_records += 1
            assert unread <= WINDOW_BYTES
        elif action == "read":
            credit.read(min(size, unread))
            unread -= min(size, unread)
            report()
    credit.read(unread)
    report()
    assert window.allowed(MAX_RECORD_BYTES) == MAX_RECORD_BYTES
