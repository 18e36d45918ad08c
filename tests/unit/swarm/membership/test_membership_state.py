"""Who is a member: by certificates that were met and the newest list of who is out."""

from __future__ import annotations

import pytest

from shoal.errors import NotAMember, UsageError
from shoal.protocol.messages import MemberHello
from shoal.swarm.membership.credentials import Revocations, sign_revocations
from shoal.swarm.membership.membership_state import MAX_KNOWN, MembershipState
from shoal.swarm.membership.storage import SwarmFolder
from shoal.types import PeerId
from tests.unit.swarm.directory.test_records import FixedClock
from tests.unit.swarm.membership.statements import (
    DAY_S,
    DELEGATE,
    NODE,
    NOW,
    OTHER,
    SWARM,
    certificate,
    delegation,
    revocations,
)


def test_the_roll_knows_who_is_in(folder: SwarmFolder) -> None:
    """A member that was met is one until its certificate ends or the list names it, its invite or its issuer."""
    clock = FixedClock()
    state = MembershipState(SWARM, folder, clock)
    state.meet(NODE.peer, MemberHello(certificate(DELEGATE, delegation=delegation(), invite=b"i" * 16)))
    assert state.is_member(NODE.peer)
    assert not state.is_member(OTHER.peer)
    clock.now = NOW + 2 * DAY_S
    assert not state.is_member(NODE.peer)
    assert not state.is_revoked(NODE.peer)
    clock.now = NOW
    for number, change in enumerate(((NODE.peer,), (DELEGATE.peer,), ()), 1):
        assert state.take(revocations(number, change, () if change else (b"i" * 16,)))
        assert state.is_revoked(NODE.peer)
        assert not state.is_member(NODE.peer)
        with pytest.raises(NotAMember):
            state.meet(NODE.peer, MemberHello(certificate(DELEGATE, delegation=delegation(), invite=b"i" * 16)))
        assert state.take(revocations(number * 10))
        assert state.is_member(NODE.peer)
        state.revocations = Revocations(SWARM, number)


def test_a_certificate_is_good_for_its_own_node_only(folder: SwarmFolder) -> None:
    """Stolen bytes make no node a member."""
    state = MembershipState(SWARM, folder, FixedClock())
    with pytest.raises(NotAMember):
        state.meet(OTHER.peer, MemberHello(certificate()))
    assert not state.known


def test_the_highest_number_wins_and_is_kept(folder: SwarmFolder) -> None:
    """Older lists are ignored, forged ones refused; a restart begins with the newest, another process learns it."""
    state, beside = MembershipState(SWARM, folder, FixedClock()), MembershipState(SWARM, folder, FixedClock())
    told: list[int] = []
    beside.on_change.append(lambda: told.append(beside.revocations.number))
    assert state.take(revocations(5, (NODE.peer,)))
    assert not state.take(revocations(4))
    assert not state.take(revocations(5))
    forged = sign_revocations(Revocations(SWARM, 9), OTHER)
    other_swarm = sign_revocations(Revocations(OTHER.peer, 9), OTHER)
    for data in (forged, other_swarm, b"", revocations(9)[:-1]):
        with pytest.raises(NotAMember):
            state.take(data)
    assert state.is_revoked(NODE.peer)
    assert beside.poll()
    assert not beside.poll()
    assert told == [5]
    assert MembershipState(SWARM, folder, FixedClock()).is_revoked(NODE.peer)


def test_news_go_to_who_lacks_them(folder: SwarmFolder) -> None:
    """The list follows a greeting only where the other side's number is known to be lower."""
    state = MembershipState(SWARM, folder, FixedClock())
    state.take(revocations(5))
    assert not state.present(NODE.peer).news
    assert state.present(NODE.peer, 4).news
    assert not state.present(NODE.peer, 5).news
    state.meet(NODE.peer, MemberHello(certificate(), number=3))
    assert state.present(NODE.peer).news
    state.meet(NODE.peer, MemberHello(certificate(), number=6))
    assert not state.present(NODE.peer).news


def test_the_roll_is_bounded(folder: SwarmFolder) -> None:
    """The member met first makes room."""
    state = MembershipState(SWARM, folder, FixedClock())
    state.meet(NODE.peer, MemberHello(certificate()))
    filler = state.known[NODE.peer]
    state.known.update({PeerId(f"{index:064x}"): filler for index in range(MAX_KNOWN - 1)})
    state.meet(OTHER.peer, MemberHello(certificate(peer=OTHER.peer)))
    assert len(state.known) == MAX_KNOWN
    assert NODE.peer not in state.known


@pytest.mark.parametrize("data", [b"x", b""])
def test_a_damaged_list_is_named(folder: SwarmFolder, data: bytes) -> None:
    """A node does not start as if no node were out."""
    folder.keep_revocations(data)
    with pytest.raises(UsageError, match="damaged"):
        MembershipState(SWARM, folder, FixedClock())


def test_a_list_that_cannot_be_kept_counts(folder: SwarmFolder, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that is full lets nobody in again; the next start hears of it from others."""
    state = MembershipState(SWARM, folder, FixedClock())
    (folder.path / "revocations" / "taken").mkdir(parents=True)
    assert state.take(revocations(5, (NODE.peer,)))
    assert state.is_revoked(NODE.peer)
    assert not state.take(revocations(5, (NODE.peer,)))
    assert "is not kept" in caplog.text
