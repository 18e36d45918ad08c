"""What a server says of itself, signed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import (
    InvalidMessage,
    RecordError,
)
from shoal.swarm.directory.records import (
    KEY_DIGITS,
    LEAST_ADDRESSES,
    MAX_ADDRESSES,
    MAX_DISK_SPANS,
    MAX_NUMERICS_CHARS,
    MAX_PLANNED,
    MAX_RECORD_BYTES,
    MAX_ROUND_TRIPS,
    MAX_VERSION_CHARS,
    Acceptance,
    ServerRecord,
    parse_record,
    sign_acceptance,
    sign_record,
    verify_acceptance,
    verify_record,
)
from shoal.swarm.identity import Identity
from shoal.types import ModelSpec, Span
from tests.records import sealed
from tests.support.struct_strategies import numbers_without_bounds, sizes_at_most, values

NOW = 1_000_000.0
IDENTITIES = [Identity.generate() for _ in range(8)]
FIRST = Span(0, 4)


class FixedClock:
    """A clock that stands where the test puts it."""

    now = NOW

    def monotonic(self) -> float:
        """The same as the wall's."""
        return self.now

    def wall(self) -> float:
        """What the test set."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Time passes at once."""
        self.now += seconds


def record(identity: Identity, span: Span = FIRST, **changes: object) -> ServerRecord:
    """A sound record, with changes."""
    fields: dict[str, object] = {
        "peer": identity.peer,
        "sequence": 1,
        "issued_at": NOW,
        "expires_at": NOW + 300,
        "addresses": ("tls://127.0.0.1:1",),
        "model": ModelSpec("tiny", "f" * 32, 12, 48),
        "span": span,
        **changes,
    }
    return ServerRecord(**fields)  # type: ignore[arg-type]


def test_records_prove_themselves() -> None:
    """A record verifies until it expires, and only with its node's signature over just these bytes."""
    identity = Identity.generate()
    signed = sign_record(record(identity), identity)
    assert verify_record(signed.data, NOW) == signed
    assert len(signed.data) < MAX_RECORD_BYTES
    with pytest.raises(RecordError, match="expired"):
        verify_record(signed.data, NOW + 301)
    with pytest.raises(RecordError, match="future"):
        verify_record(signed.data, NOW - 1000)
    for at in (0, 63, 64, len(signed.data) - 1):
        damaged = bytearray(signed.data)
        damaged[at] ^= 1
        with pytest.raises(RecordError):
            verify_record(bytes(damaged), NOW)
    with pytest.raises(RecordError, match="signed"):
        verify_record(sign_record(record(identity), Identity.generate()).data, NOW)
    with pytest.raises(RecordError, match="larger"):
        verify_record(bytes(MAX_RECORD_BYTES + 1), NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"span": Span(4, 4)},
        {"span": Span(0, 13)},
        {"span": Span(-1, 4)},
        {"expires_at": float("nan")},
        {"expires_at": NOW + 1e9},
        {"issued_at": float("nan")},
        {"issued_at": float("-inf")},
        {"sequence": -1},
        {"model": ModelSpec("tiny", "f" * 32, 1 << 26, 48), "span": Span(0, 1 << 26)},
        {"model": ModelSpec("tiny", "f" * 32, (1 << 64) - 1, 48)},
        {"model": ModelSpec("tiny", "f" * 32, 12, 1 << 40)},
        {"model": ModelSpec("tiny", "f" * 32, 12, 0)},
        {"model": ModelSpec("tiny\x1b[2J", "f" * 32, 12, 48)},
        {"model": ModelSpec("x" * 129, "f" * 32, 12, 48)},
        {"name": "x" * 65},
        {"name": "two\nlines"},
        {"name": "bell\x07"},
        {"name": "\x9b2J"},
        {"name": "turned \u202e round"},
        {"numerics": "\x1b"},
        {"version": "\u2028"},
        {"free_tokens": -1},
        {"queued_rows": (1 << 64) - 1},
        {"decode_rows_per_s": float("nan")},
        {"prefill_rows_per_s": float("inf")},
        {"bits_per_weight": -1.0},
        {"kl_nats": -0.1},
        {"kl_nats": float("nan")},
        {"kl_nats": float("inf")},
        {"fetch_s": float("nan")},
        {"next_span": Span(9, 2)},
        {"next_span": Span(0, 13)},
        {"on_disk": (Span(5, 13),)},
        {"on_disk": (Span(-1, 3),)},
        {"plan": (("abababab", Span(3, 3)),)},
        {"plan": (("[red]", Span(0, 3)),)},
        {"round_trips": (("ab" * 32, float("nan")),)},
        {"round_trips": (("ab" * 32, -1.0),)},
        {"addresses": ("tls://127.0.0.1:1[/]",)},
        {"addresses": ("tls://127.0.0.1:0",)},
        {"addresses": ("tls://127.0.0.1:65536",)},
        {"addresses": ("tls://example.org:1",)},
        {"addresses": ("tls://[::1:1",)},
        {"addresses": ("tls://127.0.0.1:1\n",)},
        {"addresses": ("nonsense",)},
        {"addresses": ("tls://127.0.0.1:1",) * 9},
    ],
)
def test_signed_nonsense(changes: dict[str, object]) -> None:
    """A signature does not make impossible spans, numbers, names or addresses true, nor eternal life; none is signed here."""
    identity = Identity.generate()
    nonsense = record(identity, **changes)
    with pytest.raises(RecordError):
        verify_record(sealed(nonsense, identity).data, NOW)
    if changes != {"expires_at": NOW + 1e9}:
        with pytest.raises(InvalidMessage, match="ServerRecord"):
            sign_record(nonsense, identity)


ADDRESSES = (
    "tls://127.0.0.1:1",
    "iroh://[2001:db8::1]:65535",
    "iroh://https://relay.example/",
    f"memory://{'ab' * 32}",
)


@pytest.mark.parametrize("address", [*ADDRESSES, "tls://0.0.0.0:1", "later://some-thing_else.x:9"])
def test_addresses_that_records_may_name(address: str) -> None:
    """IP addresses with a port, relays, and whatever a later transport may write in this form."""
    identity = Identity.generate()
    assert verify_record(sign_record(record(identity, addresses=(address,)), identity).data, NOW)


def largest(text: str, **changes: object) -> tuple[Identity, ServerRecord]:
    """A record with every field at its bound, its texts made of one character."""
    identity = Identity.generate()
    sound = sizes_at_most(ServerRecord, text)
    spans = Span(1022, 1023)
    fields = {
        "peer": identity.peer,
        "addresses": ("tls://[1111:2222:3333:4444:5555:6666:255.255.255.255]:65535",) * MAX_ADDRESSES,
        "model": msgspec.structs.replace(sound.model, fingerprint="f" * 64),
        "numerics": "n" * MAX_NUMERICS_CHARS,
        "version": "v" * MAX_VERSION_CHARS,
        "span": spans,
        "next_span": spans,
        "on_disk": (spans,) * MAX_DISK_SPANS,
        "plan": (("f" * KEY_DIGITS, spans),) * MAX_PLANNED,
        **changes,
    }
    return identity, msgspec.structs.replace(sound, **fields)


@pytest.mark.parametrize("text", ["x", "é", "€", "😀"])
@pytest.mark.parametrize("longest", [True, False])
def test_a_record_fits_by_construction(text: str, longest: bool) -> None:
    """Every field at its bound, in characters of one to four bytes: it is signed, without the least useful parts, in order."""
    relay = f"iroh://https://{'r' * 100}:65535/"
    identity, whole = largest(text, **({"addresses": (relay,) * MAX_ADDRESSES} if longest else {}))
    signed = sign_record(whole, identity)
    assert len(signed.data) <= MAX_RECORD_BYTES
    told = parse_record(signed.data).record
    assert told == signed.record
    assert told.name == whole.name
    assert len(told.addresses) >= LEAST_ADDRESSES
    kept = (len(told.on_disk), len(told.round_trips), len(told.plan), len(told.addresses) - MAX_ADDRESSES)
    assert all(not earlier for index, earlier in enumerate(kept[:-1]) if any(kept[index + 1 :]) and kept[-1] < 0)


def test_what_a_server_usually_says_fits_whole() -> None:
    """Four addresses of each transport, four neighbours, a long plan and a long name."""
    identity = Identity.generate()
    hosts = [f"[2001:db8:1234:5678:9abc:def0:1234:567{index}]:54321" for index in range(4)]
    said = record(
        identity,
        name="é" * 40,
        model=ModelSpec("meta-llama/Llama-3.1-405B-Instruct", "f" * 64, 126, 16_384),
        addresses=tuple(f"{scheme}://{host}" for scheme in ("tls", "iroh") for host in hosts),
        span=Span(100, 120),
        numerics="torch+avx512-bf16/float32/" + "f" * 16,
        plan=tuple((f"{n:08x}", Span(100, 120)) for n in range(MAX_PLANNED)),
        on_disk=(Span(0, 9), Span(20, 30), Span(50, 60), Span(100, 126)),
        round_trips=tuple((f"{n:064x}", 0.123456) for n in range(MAX_ROUND_TRIPS)),
        bits_per_weight=4.531,
        kl_nats=0.0312,
    )
    assert sign_record(said, identity).record == said


def test_a_record_without_bits_and_quality_says_nothing_of_them() -> None:
    """One of an earlier version is read, and what it does not say counts as unknown."""
    identity = Identity.generate()
    fields = msgspec.msgpack.decode(sign_record(record(identity), identity).data[64:])
    assert {"bits_per_weight", "kl_nats"}.isdisjoint(fields)
    told = parse_record(sign_record(record(identity), identity).data).record
    assert (told.bits_per_weight, told.kl_nats) == (0.0, None)
    exact = parse_record(sign_record(record(identity, bits_per_weight=32.0, kl_nats=0.0), identity).data).record
    assert (exact.bits_per_weight, exact.kl_nats) == (32.0, 0.0)  # no KL is a word, too


@given(st.data())
def test_any_record_within_its_bounds_is_signed(data: st.DataObject) -> None:
    """Signing raises nothing for what the types, the model's blocks and the form of addresses allow; it comes back equal."""
    identity = IDENTITIES[0]
    blocks = data.draw(st.integers(1, 1024))
    starts = st.integers(0, blocks - 1)
    span = st.tuples(starts, starts).map(lambda ends: Span(min(ends), max(ends) + 1))
    drawn = data.draw(values(ServerRecord))
    said = msgspec.structs.replace(
        drawn,
        peer=identity.peer,
        model=msgspec.structs.replace(drawn.model, num_blocks=blocks),
        addresses=tuple(data.draw(st.lists(st.sampled_from(ADDRESSES), max_size=MAX_ADDRESSES))),
        span=data.draw(span),
        next_span=data.draw(st.none() | span),
        on_disk=tuple(data.draw(st.lists(span, max_size=MAX_DISK_SPANS))),
        plan=tuple((key, data.draw(span)) for key, _ in drawn.plan),
    )
    signed = sign_record(said, identity)
    assert len(signed.data) <= MAX_RECORD_BYTES
    assert parse_record(signed.data) == signed


def test_every_field_of_what_is_signed_has_bounds() -> None:
    """No number, text or list in a record or an acceptance can be of any size."""
    assert [*numbers_without_bounds(ServerRecord), *numbers_without_bounds(Acceptance)] == []


@given(st.binary(max_size=400))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    """Parsing never raises anything but RecordError."""
    for parse in (parse_record, lambda one: verify_acceptance(one, NOW)):
        with pytest.raises(RecordError):
            parse(data)


def test_acceptances_expire_and_name_everybody() -> None:
    """What a hop shows to another cannot be forged, changed or kept."""
    identity = Identity.generate()
    given_ = Acceptance(b"s" * 16, identity.peer, "ab" * 32, 3, NOW + 60)
    data = sign_acceptance(given_, identity)
    assert verify_acceptance(data, NOW) == given_
    for wrong, now in (
        (data, NOW + 61),
        (data[:-1], NOW),
        (b"", NOW),
        (sign_acceptance(given_, Identity.generate()), NOW),
    ):
        with pytest.raises(RecordError):
            verify_acceptance(wrong, now)
    with pytest.raises(RecordError):
        verify_record(data, NOW)
