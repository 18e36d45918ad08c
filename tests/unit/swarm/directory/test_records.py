"""Records, tickets, the directory, routes and placement."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import FingerprintMismatch, NoRoute, ProtocolError, RecordError, TicketError, UsageError
from shoal.swarm.directory.directory import Directory
from shoal.swarm.directory.records import (
    MAX_RECORD_BYTES,
    Acceptance,
    ServerRecord,
    sign_acceptance,
    sign_record,
    verify_acceptance,
    verify_record,
)
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity, verify
from shoal.swarm.routing.route_planner import same_model, shortest_route
from shoal.types import ModelSpec, PeerId, Span, missing_spans

NOW = 1_000_000.0
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


def test_a_key_of_small_order_signs_nothing() -> None:
    """A key that anybody can sign for is no node's."""
    key = bytes([1]) + bytes(31)
    assert not verify(PeerId(key.hex()), b"label", b"anything", key + bytes(32))


@pytest.mark.parametrize(
    "changes",
    [
        {"span": Span(4, 4)},
        {"span": Span(0, 13)},
        {"span": Span(-1, 4)},
        {"expires_at": float("nan")},
        {"expires_at": NOW + 1e9},
        {"issued_at": float("nan")},
    ],
)
def test_signed_nonsense(changes: dict[str, object]) -> None:
    """A signature does not make impossible spans or eternal life true."""
    identity = Identity.generate()
    with pytest.raises(RecordError):
        verify_record(sign_record(record(identity, **changes), identity).data, NOW)


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


def test_tickets_are_one_string() -> None:
    """A ticket survives being copied; what is not one is named."""
    ticket = Ticket("ab" * 32, ("tls://[::1]:4433", "iroh://127.0.0.1:1"))
    assert Ticket.parse(f"  {ticket}\n") == ticket
    for text in ("", "hello", "shoal1-", "shoal1-!!!", str(ticket)[:-9], "shoal1-" + "A" * 5000):
        with pytest.raises(TicketError):
            Ticket.parse(text)


@given(st.text(max_size=80))
def test_any_text_is_a_ticket_or_refused(text: str) -> None:
    """Parsing never raises anything but TicketError."""
    try:
        assert Ticket.parse("shoal1-" + text)
    except TicketError as error:
        assert str(error)


def test_identities_are_kept_in_files(tmp_path: Path) -> None:
    """Made once with mode 0600, the same afterwards; anything else in the file is an error."""
    path = tmp_path / "deep" / "key"
    first = Identity.load(path)
    assert Identity.load(path).peer == first.peer
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["key"]
    path.write_text("not a key")
    with pytest.raises(UsageError, match="identity"):
        Identity.load(path)


def test_the_newest_record_wins() -> None:
    """Older and equal sequence numbers, forgeries and expired records are dropped and counted."""
    clock, identity = FixedClock(), Identity.generate()
    directory = Directory(clock)
    new, old = (sign_record(record(identity, sequence=number), identity).data for number in (5, 4))
    assert directory.add(new)
    assert not directory.add(old)
    assert not directory.add(new)
    assert not directory.add(b"nonsense")
    assert directory.dropped == {"old": 1, "invalid": 1}
    clock.now += 400
    assert directory.records() == []
    assert directory.get(identity.peer) is None


def test_two_directories_become_one() -> None:
    """After digest, records and records both sides hold the newest of everything."""
    ids = [Identity.generate() for _ in range(4)]
    ours, theirs = Directory(FixedClock()), Directory(FixedClock())
    for index, identity in enumerate(ids):
        for directory, sequence in ((ours, 1 + index % 2), (theirs, 2 - index % 2)):
            if (directory is ours and index != 3) or (directory is theirs and index != 2):
                directory.add(sign_record(record(identity, sequence=sequence), identity).data)
    want, lacks = theirs.answer(ours.digest())
    for data in lacks:
        assert ours.add(data)
    for data in ours.select(want):
        assert theirs.add(data)
    assert ours.digest() == theirs.digest()
    assert len(ours.records()) == 4
    for digest in (b"x", bytes(40 * 5000)):
        with pytest.raises(ProtocolError):
            ours.answer(digest)


def brute_force(spans: list[Span], wanted: Span) -> int | None:
    """The least number of hops, by breadth-first search over block boundaries."""
    reached, hops = {wanted.start}, 0
    while wanted.stop not in reached:
        following = {
            at
            for start in reached
            for span in spans
            if start in span
            for at in range(start + 1, min(span.stop, wanted.stop) + 1)
        }
        if following <= reached:
            return None
        reached |= following
        hops += 1
    return hops


spans = st.tuples(st.integers(0, 11), st.integers(1, 12)).filter(lambda pair: pair[0] < pair[1]).map(lambda p: Span(*p))


@given(st.lists(spans, max_size=8), spans)
def test_routes_are_shortest(held: list[Span], wanted: Span) -> None:
    """Greedy routes have as few hops as exist, cover the span in order, and use only what servers hold."""
    servers = [record(IDENTITIES[index], span) for index, span in enumerate(held)]
    best = brute_force(held, wanted)
    if best is None:
        with pytest.raises(NoRoute) as caught:
            shortest_route(wanted, servers)
        assert caught.value.missing == tuple((span.start, span.stop) for span in missing_spans(wanted, held))
        return
    route = shortest_route(wanted, servers)
    assert len(route) == best
    assert [hop.span.start for hop in route] == [wanted.start, *(hop.span.stop for hop in route[:-1])]
    assert route[-1].span.stop == wanted.stop
    by_peer = {server.peer: server for server in servers}
    assert all(by_peer[hop.peer].span.covers(hop.span) for hop in route)


IDENTITIES = [Identity.generate() for _ in range(8)]


def test_models_are_told_apart_by_fingerprint() -> None:
    """Two checkpoints of one name are never mixed, and the error shows both."""
    one = record(IDENTITIES[0], name="left")
    other = msgspec.structs.replace(
        one, peer=IDENTITIES[1].peer, name="right", model=ModelSpec("tiny", "e" * 32, 12, 48)
    )
    assert same_model([one, other], fingerprint="f" * 32) == [one]
    assert same_model([one], "tiny") == [one]
    for name, fingerprint in (("tiny", None), (None, None), ("tiny", "d" * 32)):
        with pytest.raises(FingerprintMismatch, match=r"left.*right|right.*left"):
            same_model([one, other], name, fingerprint)
    with pytest.raises(NoRoute, match="tiny"):
        same_model([one], "large")
    with pytest.raises(NoRoute, match="nothing"):
        same_model([])
