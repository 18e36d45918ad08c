"""The newest record of each node is held; one source can neither fill a directory nor keep it busy."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from shoal.errors import ProtocolError, ServerFull
from shoal.swarm.directory.directory import (
    MAX_DOUBTFUL,
    MAX_EXCHANGES_PER_MINUTE,
    MAX_EXCHANGES_PER_SOURCE,
    MAX_LOOKED_AT_PER_MINUTE,
    MAX_NEW_PER_MINUTE,
    MAX_RECORDS,
    Directory,
    Standing,
    pack_records,
    unpack_records,
)
from shoal.swarm.directory.records import parse_record, sign_record
from shoal.swarm.identity import Identity
from shoal.types import ModelSpec, PeerId
from tests.unit.swarm.directory.test_records import FixedClock, record

FLOODER, FRIEND = (Identity.generate().peer for _ in range(2))


def made_up(count: int) -> list[bytes]:
    """Validly signed records of keys that nobody has met."""
    keys = (Identity.generate() for _ in range(count))
    return [sign_record(record(key), key).data for key in keys]


@pytest.fixture(scope="module")
def crowd() -> list[bytes]:
    """More than a directory holds."""
    return made_up(MAX_RECORDS + 50)


def brought(directory: Directory) -> Callable[[PeerId], int]:
    """How many of the nodes held a source brought."""
    return directory._introduced.__getitem__


def test_who_joins_is_told_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    """In the log, with the beginning of its id; without a name by that alone."""
    directory, named, other = Directory(FixedClock()), Identity.generate(), Identity.generate()
    with caplog.at_level(logging.INFO, "shoal"):
        for sequence in (1, 2):
            directory.add(sign_record(record(named, name="first", sequence=sequence), named).data)
        directory.add(sign_record(record(other, name=""), other).data)
    words = [line.partition(" joins with")[0] for line in caplog.messages]
    assert words == [f"first ({named.peer[:8]})", other.peer[:8]]


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


def test_a_source_brings_so_many_new_nodes_a_minute(crowd: list[bytes]) -> None:
    """The rest is dropped and counted; others are not affected, nor is the source's own record."""
    directory, me = Directory(FixedClock()), Identity.generate()
    assert directory.take(crowd[: MAX_NEW_PER_MINUTE + 20], FLOODER) == MAX_NEW_PER_MINUTE
    assert directory.dropped == {"too many": 20}
    assert directory.take(crowd[-5:], FRIEND) == 5
    assert directory.add(sign_record(record(me), me).data, me.peer)


def test_what_is_looked_at_is_bounded() -> None:
    """Records that are not even valid cost their source the same; a busy node stops checking them."""
    directory = Directory(FixedClock())
    junk = [b"junk"] * (MAX_LOOKED_AT_PER_MINUTE + 10)
    assert directory.take(junk, FLOODER) == 0
    assert directory.dropped == {"invalid": MAX_LOOKED_AT_PER_MINUTE, "too many": 10}
    assert directory.take(made_up(1), FRIEND) == 1


def full(crowd: list[bytes]) -> Directory:
    """A directory that one source has filled, in minutes."""
    clock = FixedClock()
    directory, quarter = Directory(clock), MAX_RECORDS // 4
    for start in range(0, MAX_RECORDS, quarter):
        assert directory.take(crowd[start : start + quarter], FLOODER) == quarter
        clock.now += 61.0
    assert len(directory.records()) == MAX_RECORDS
    return directory


def test_a_full_directory_makes_room_for_quieter_sources(crowd: list[bytes]) -> None:
    """Nodes that come themselves, or that others bring, replace the last that the busiest source brought."""
    directory, came = full(crowd), Identity.generate()
    assert directory.take(crowd[MAX_RECORDS : MAX_RECORDS + 10], FLOODER) == 0
    assert directory.dropped["full"] == 10
    assert directory.take(crowd[MAX_RECORDS : MAX_RECORDS + 10], FRIEND) == 10
    assert directory.add(sign_record(record(came), came).data, came.peer)
    assert len(directory.records()) == MAX_RECORDS
    assert (brought(directory)(FLOODER), brought(directory)(FRIEND)) == (MAX_RECORDS - 11, 10)
    assert directory.dropped["evicted"] == 11
    assert directory.get(came.peer) is not None


def test_who_came_is_not_pushed_out_by_hearsay(crowd: list[bytes]) -> None:
    """A node that has shown itself stays, also when somebody brings a newer record of it."""
    came, directory = Identity.generate(), Directory(FixedClock())
    assert directory.add(sign_record(record(came), came).data, came.peer)
    assert directory.add(sign_record(record(came, sequence=2), came).data, FLOODER)
    assert brought(directory)(FLOODER) == 0


def test_expired_records_make_room_first(crowd: list[bytes]) -> None:
    """They count no longer."""
    directory = full(crowd)
    directory._clock.now += 300.0  # type: ignore[attr-defined]  # the test's clock
    fresh = Identity.generate()
    now = directory._clock.wall()
    data = sign_record(record(fresh, issued_at=now, expires_at=now + 300), fresh).data
    assert directory.take([data], FLOODER) == 1
    assert len(directory.records()) == 1


def test_sources_take_turns_in_an_answer(crowd: list[bytes]) -> None:
    """So what one source made up comes last where not everything fits; who came itself comes before all that was told of."""
    directory, came = Directory(FixedClock()), Identity.generate()
    directory.take(crowd[:500], FLOODER)
    directory.take(crowd[500:503], FRIEND)
    own = sign_record(record(came), came).data
    directory.add(own, came.peer)
    _, lacks = directory.answer(b"")
    assert lacks[0] == own
    assert set(lacks[1:7]) >= set(crowd[500:503])
    assert lacks[1] in crowd[500:503]  # of two whose turn it is, the one that told of less


NETWORK, OTHER_NETWORK = "192.0.2.1", "198.51.100.1"


def came(directory: Directory, network: str, **changes: object) -> PeerId:
    """A fresh key that introduces itself from a network."""
    key = Identity.generate()
    assert directory.add(sign_record(record(key, **changes), key).data, key.peer, network=network)
    return key.peer


def told(directory: Directory, fingerprint: str = "") -> list[str]:
    """The nodes in an answer, in its order."""
    return [parse_record(data).record.peer for data in directory.answer(b"", fingerprint)[1]]


def test_an_answer_begins_with_the_answerers_own_record() -> None:
    """Then come servers of the asker's model: those that answered, those that came, hearsay, and last those that are silent."""
    me = Identity.generate()
    directory = Directory(FixedClock(), me.peer)
    hearsay = made_up(1)
    directory.take(hearsay, FRIEND, NETWORK)
    silent, one, other, met = (came(directory, NETWORK) for _ in range(4))
    wanted = came(directory, NETWORK, model=ModelSpec("other", "ab" * 16, 12, 48))
    directory.silent(silent)
    directory.answered(met)
    directory.add(sign_record(record(me), me).data)
    found = told(directory, "ab" * 16)
    assert found[:3] == [me.peer, wanted, met]
    assert set(found[3:5]) == {one, other}
    assert found[5:] == [parse_record(hearsay[0]).record.peer, silent]


def test_keys_of_one_network_share_its_turns() -> None:
    """Thousands that one address makes up come after everybody else's first ones."""
    directory = Directory(FixedClock())
    flood = {came(directory, NETWORK) for _ in range(200)}
    honest = {came(directory, OTHER_NETWORK) for _ in range(4)}
    found = told(directory)
    assert set(found[:8]) >= honest
    assert set(found[8:]) <= flood


def test_one_network_brings_so_many_whatever_its_keys_are() -> None:
    """Its own nodes count as those that it tells of do; another network is not affected."""
    directory = Directory(FixedClock())
    for _ in range(MAX_NEW_PER_MINUTE):
        came(directory, NETWORK)
    one, other = Identity.generate(), Identity.generate()
    assert not directory.add(sign_record(record(one), one).data, one.peer, network=NETWORK)
    assert directory.add(sign_record(record(other), other).data, other.peer, network=OTHER_NETWORK)


def test_room_is_shared_by_network() -> None:
    """A network that fills a directory by thousands of keys that come themselves loses them to others, first the silent."""
    clock = FixedClock()
    directory = Directory(clock)
    flood = []
    while len(flood) < MAX_RECORDS:
        flood += [came(directory, NETWORK) for _ in range(MAX_NEW_PER_MINUTE)]
        clock.now += 61.0
    one = Identity.generate()
    assert not directory.add(sign_record(record(one), one).data, one.peer, network=NETWORK)
    assert directory.dropped["full"] == 1
    directory.silent(flood[7])
    directory.answered(flood[-1])
    honest = came(directory, OTHER_NETWORK)
    assert directory.get(flood[7]) is None
    came(directory, OTHER_NETWORK)
    assert directory.get(flood[-1]) is not None
    assert directory.get(flood[-2]) is None
    assert directory.get(honest) is not None
    directory.silent(flood[8])
    assert directory.add(sign_record(record(one), one).data, one.peer, network=NETWORK)  # in the place of its own
    assert directory.get(flood[8]) is None


def test_the_silent_of_others_are_no_room_for_who_has_most() -> None:
    """An outage of a quiet network is no reason to forget it for more keys of a busy one."""
    clock = FixedClock()
    directory = Directory(clock)
    honest = came(directory, OTHER_NETWORK)
    directory.silent(honest)
    for _ in range(MAX_RECORDS - 1):
        if directory._introduced[NETWORK] % MAX_NEW_PER_MINUTE == 0:
            clock.now += 61.0
        came(directory, NETWORK)
    key = Identity.generate()
    assert not directory.add(sign_record(record(key), key).data, key.peer, network=NETWORK)
    assert directory.get(honest) is not None


def test_a_word_of_others_changes_no_standing() -> None:
    """Who was silent is so until it answers or comes itself."""
    directory, key = Directory(FixedClock()), Identity.generate()
    directory.add(sign_record(record(key), key).data, key.peer, network=NETWORK)
    directory.silent(key.peer)
    directory.add(sign_record(record(key, sequence=2), key).data, FRIEND, network=OTHER_NETWORK)
    assert directory._held[key.peer].standing is Standing.SILENT
    directory.add(sign_record(record(key, sequence=3), key).data, key.peer, network=NETWORK)
    assert directory._held[key.peer].standing is Standing.CAME
    directory.answered(key.peer)
    assert directory.has_answered(key.peer)


def test_in_a_private_swarm_members_are_sources() -> None:
    """An invite is not free, and many members may share an address."""
    directory = Directory(FixedClock())
    directory.admit_members_only(lambda peer, proof: True)
    crowd = made_up(MAX_NEW_PER_MINUTE + 10)
    pairs = [part for data in crowd for part in (data, b"")]
    assert directory.take(pairs[: 2 * MAX_NEW_PER_MINUTE], FLOODER, NETWORK) == MAX_NEW_PER_MINUTE
    assert directory.take(pairs[2 * MAX_NEW_PER_MINUTE :], FRIEND, NETWORK) == 10


def test_exchanges_are_limited_for_each_network() -> None:
    """Fresh keys get no more of them."""
    directory = Directory(FixedClock())
    peers = [PeerId(f"{number:064x}") for number in range(MAX_EXCHANGES_PER_SOURCE + 1)]
    for peer in peers[:-1]:
        directory.begin_exchange(peer, NETWORK)
    with pytest.raises(ServerFull):
        directory.begin_exchange(peers[-1], NETWORK)
    directory.begin_exchange(peers[-1], OTHER_NETWORK)


def test_exchanges_are_limited_for_each_peer() -> None:
    """Beyond that the answer is: later."""
    directory = Directory(FixedClock())
    for _ in range(MAX_EXCHANGES_PER_MINUTE):
        directory.begin_exchange(FLOODER)
    with pytest.raises(ServerFull) as caught:
        directory.begin_exchange(FLOODER)
    assert caught.value.retry_after > 0
    directory.begin_exchange(FRIEND)


def test_a_private_swarm_takes_only_certified_nodes() -> None:
    """A record counts with a proof of its own node's, whoever brings it, and both travel on."""
    one, two = Directory(FixedClock()), Directory(FixedClock())
    for directory in (one, two):
        directory.admit_members_only(lambda peer, proof: proof == b"member " + peer.encode())
    member, stranger = Identity.generate(), Identity.generate()
    ours, theirs = (sign_record(record(key), key).data for key in (member, stranger))
    proof = b"member " + member.peer.encode()
    assert one.take([theirs, proof, theirs, b"", ours, b"", ours, proof, theirs], FLOODER) == 1
    assert one.dropped == {"refused": 3}
    _, entries = unpack_records(0, pack_records([], one.answer(b"")[1], 1 << 20))
    assert two.take(entries, FRIEND) == 1
    assert [signed.record.peer for signed in two.records()] == [member.peer]
    assert two.select([member.peer, stranger.peer]) == [ours, proof]


def written(key: Identity, clock_s: float, sequence: int = 1) -> bytes:
    """A record of a node whose clock shows this."""
    fields = {"issued_at": clock_s, "expires_at": clock_s + 300, "sequence": sequence}
    return sign_record(record(key, **fields), key).data


@pytest.mark.parametrize("off_s", [200.0, 700.0, -700.0, 80_000.0])
def test_a_record_is_as_old_as_its_owner_says(off_s: float) -> None:
    """At a dial a node tells what its clock shows; what others hand on of it stays doubtful."""
    clock, key = FixedClock(), Identity.generate()
    theirs = clock.now + off_s
    directory = Directory(clock)
    assert directory.take([written(key, theirs)], FRIEND, NETWORK, clock.now, believed=True) == 0
    assert [signed.record.peer for signed in directory.doubtful] == [key.peer]
    assert "is a clock wrong?" in str(directory.problem(key.peer))
    assert directory.take([written(key, theirs)], key.peer, NETWORK, theirs) == 1
    assert (directory.doubtful, directory.problems) == ([], ())
    assert directory.ahead_s(key.peer) == off_s
    clock.now += 299.0
    assert directory.get(key.peer) is not None
    clock.now += 2.0
    assert directory.get(key.peer) is None


def test_this_nodes_clock_may_be_off_too() -> None:
    """All that a node tells which was dialled from here is as old as its clock says; of one that came, its own record only."""
    clock, key = FixedClock(), Identity.generate()
    theirs = clock.now + 700.0
    directory = Directory(clock)
    assert directory.take([written(key, theirs)], FRIEND, NETWORK, theirs) == 0
    assert directory.take([written(key, theirs)], FRIEND, NETWORK, theirs, believed=True) == 1


def test_a_clock_that_was_never_set_is_told() -> None:
    """Its record is dropped, and the reason is there for who asked its node; a sound one takes it away."""
    clock, key = FixedClock(), Identity.generate()
    directory = Directory(clock)
    assert directory.take([written(key, clock.now - 90_000.0)], key.peer, NETWORK, clock.now - 90_000.0) == 0
    assert directory.take([b"junk"], FRIEND, NETWORK) == 0
    assert "expired 89700 s ago" in str(directory.problem(key.peer))
    assert "does not parse" in str(directory.problem(FRIEND))
    assert directory.take([written(key, clock.now, 2)], key.peer, NETWORK, clock.now) == 1
    assert directory.problem(key.peer) is None
    assert len(directory.problems) == 1


def test_what_is_kept_of_dropped_records_is_bounded() -> None:
    """The latest stay."""
    clock = FixedClock()
    directory = Directory(clock)
    keys = [Identity.generate() for _ in range(MAX_DOUBTFUL + 10)]
    for key in keys:
        directory.take([written(key, clock.now + 1000.0)], FRIEND, NETWORK)
    assert [signed.record.peer for signed in directory.doubtful] == [key.peer for key in keys[10:]]
    assert len(directory.problems) == MAX_DOUBTFUL
