"""Invites, certificates and revocation lists: what is signed, kept and believed."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InviteError, NotAMember, UsageError
from shoal.protocol.messages import MAX_CERTIFICATE_BYTES, MAX_REVOCATIONS_BYTES, MemberHello
from shoal.swarm.identity import Identity
from shoal.swarm.membership.certificate_issuer import CertificateIssuer, Issuer
from shoal.swarm.membership.credentials import (
    CERTIFICATE_LIFETIME_S,
    DELEGATION_PREFIX,
    INVITE_PREFIX,
    MAX_CERTIFICATE_LIFETIME_S,
    MAX_REVOKED,
    RENEWAL_WINDOW_S,
    Certificate,
    Delegation,
    Invite,
    Revocations,
    parse_invite,
    sign_certificate,
    sign_delegation,
    sign_invite,
    sign_revocations,
    verify_certificate,
    verify_revocations,
)
from shoal.swarm.membership.membership_state import MAX_KNOWN, MembershipState
from shoal.swarm.membership.storage import StoredMembership, SwarmFolder
from shoal.types import PeerId
from tests.unit.swarm.directory.test_records import NOW, FixedClock

OWNER, DELEGATE, NODE, OTHER = (Identity.generate() for _ in range(4))
SWARM = OWNER.peer
DAY_S = 86_400.0


def certificate(issuer: Identity = OWNER, **changes: object) -> bytes:
    """A sound certificate for NODE, with changes."""
    fields = {"swarm": SWARM, "peer": NODE.peer, "issuer": issuer.peer, "issued_at": NOW, "expires_at": NOW + DAY_S}
    return sign_certificate(Certificate(**{**fields, **changes}), issuer)


def delegation(until: float = NOW + 30 * DAY_S, peer: str = DELEGATE.peer, owner: Identity = OWNER) -> bytes:
    """A delegation to DELEGATE, with changes."""
    return unread(sign_delegation(Delegation(owner.peer, peer, until), owner), DELEGATION_PREFIX)


def unread(text: str, prefix: str) -> bytes:
    """The statement in a string, whatever it says."""
    body = text.removeprefix(prefix)
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def invite(owner: Identity = OWNER, **changes: object) -> bytes:
    """An invite that DELEGATE redeems, with changes."""
    fields: dict[str, object] = {
        "swarm": owner.peer,
        "id": os.urandom(16),
        "redeemer": DELEGATE.peer,
        "addresses": ("tls://127.0.0.1:1",),
        "expires_at": NOW + DAY_S,
        "name": "home",
        **changes,
    }
    return unread(sign_invite(Invite(**fields), owner), INVITE_PREFIX)


def revocations(number: int, nodes: tuple[str, ...] = (), invites: tuple[bytes, ...] = ()) -> bytes:
    """A list signed by the owner."""
    return sign_revocations(Revocations(SWARM, number, frozenset(nodes), frozenset(invites)), OWNER)


@pytest.fixture
def folder(tmp_path: Path) -> SwarmFolder:
    """An empty folder."""
    return SwarmFolder("home", tmp_path)


@pytest.fixture
def redeemer(folder: SwarmFolder) -> CertificateIssuer:
    """DELEGATE's, by a delegation."""
    issuer = Issuer(SWARM, DELEGATE, delegation(), NOW + 30 * DAY_S)
    return CertificateIssuer(DELEGATE.peer, issuer, folder.node("server"), FixedClock())


NOBODY_OUT = Revocations(SWARM, 0)


def test_a_certificate_holds_for_its_time() -> None:
    """Valid from now (and a little skew) to its end."""
    data = certificate()
    assert verify_certificate(data, SWARM, NOW).peer == NODE.peer
    assert verify_certificate(data, SWARM, NOW + DAY_S - 1).peer == NODE.peer
    for now in (NOW + DAY_S, NOW - 1000):
        with pytest.raises(NotAMember):
            verify_certificate(data, SWARM, now)
    assert verify_certificate(data, SWARM, NOW + 2 * DAY_S, late_s=2 * DAY_S)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 200,
        certificate(OTHER),
        certificate(swarm=OTHER.peer),
        certificate(OTHER, swarm=OTHER.peer),
        certificate(DELEGATE),
        certificate(DELEGATE, delegation=delegation(peer=OTHER.peer)),
        certificate(DELEGATE, delegation=delegation(owner=OTHER)),
        certificate(DELEGATE, delegation=delegation(until=NOW + 10)),
        certificate(OTHER, delegation=delegation()),
        certificate(expires_at=float("inf")),
        certificate(expires_at=float("nan")),
        certificate(issued_at=float("nan")),
        certificate(expires_at=NOW + MAX_CERTIFICATE_LIFETIME_S + 1),
        certificate(DELEGATE, delegation=delegation(until=float("nan"))),
        certificate() + b"\0" * MAX_CERTIFICATE_BYTES,
    ],
)
def test_what_is_no_certificate(data: bytes) -> None:
    """Garbage, other swarms, undelegated and overreaching issuers, strange times and sizes."""
    with pytest.raises(NotAMember):
        verify_certificate(data, SWARM, NOW)


@given(st.data())
def test_a_changed_certificate_is_none(data: st.DataObject) -> None:
    """Any changed byte is noticed."""
    sound = certificate(DELEGATE, delegation=delegation())
    at = data.draw(st.integers(0, len(sound) - 1))
    changed = bytearray(sound)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(NotAMember):
        verify_certificate(bytes(changed), SWARM, NOW)


def test_a_delegates_certificate_fits() -> None:
    """The longest chain stays within the wire's limit and verifies."""
    data = certificate(DELEGATE, delegation=delegation(), invite=b"i" * 16)
    assert len(data) <= MAX_CERTIFICATE_BYTES
    assert verify_certificate(data, SWARM, NOW).issuer == DELEGATE.peer


def test_the_longest_list_fits() -> None:
    """As many nodes and invites as a list may have stay within the wire's limit."""
    nodes = tuple(os.urandom(32).hex() for _ in range(MAX_REVOKED))
    data = revocations(1 << 48, nodes, tuple(os.urandom(16) for _ in range(MAX_REVOKED)))
    assert len(data) <= MAX_REVOCATIONS_BYTES
    assert len(verify_revocations(data, SWARM).nodes) == MAX_REVOKED
    one_more = sign_revocations(Revocations(SWARM, 1, frozenset([*nodes, NODE.peer])), OWNER)
    with pytest.raises(NotAMember):
        verify_revocations(one_more, SWARM)


def test_an_invites_text() -> None:
    """It round-trips; cut off, changed or with another beginning it is named as damaged."""
    text = sign_invite(Invite(SWARM, b"i" * 16, NODE.peer, ("tls://127.0.0.1:1",), NOW, "home"), OWNER)
    found, _ = parse_invite(f"  {text}\n")
    assert (found.redeemer, found.addresses, found.name) == (NODE.peer, ("tls://127.0.0.1:1",), "home")
    for wrong in (text[:-5], text[:40] + "AAAA" + text[44:], "shoal1-abc", "", text + "x" * 5000, text + "é"):
        with pytest.raises(InviteError):
            parse_invite(wrong)


@pytest.mark.parametrize("name", ["", "../x", "Home", "a/b", "x" * 33, "a\n", ".", "-a"])
def test_names_are_safe_as_folders(name: str, tmp_path: Path) -> None:
    """A name from an invite or a command cannot leave its folder."""
    with pytest.raises(UsageError):
        SwarmFolder(name, tmp_path)


def test_node_ids_have_one_form() -> None:
    """A node id followed by a newline would be the same key under another name: no message may hold one."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"swarm": SWARM, "peer": NODE.peer + "\n", "expires_at": NOW}, Delegation)


def test_an_invite_is_redeemed_once(redeemer: CertificateIssuer) -> None:
    """Its first node may come again, since an answer can get lost; another node never."""
    data = invite()
    first = redeemer.redeem(data, NODE.peer, NOBODY_OUT)
    assert verify_certificate(first, SWARM, NOW).invite == parse_id(data)
    assert verify_certificate(redeemer.redeem(data, NODE.peer, NOBODY_OUT), SWARM, NOW)
    with pytest.raises(NotAMember, match="another node"):
        redeemer.redeem(data, OTHER.peer, NOBODY_OUT)


def parse_id(data: bytes) -> bytes:
    """An invite's id."""
    return msgspec.msgpack.decode(data[64:], type=Invite).id


def test_a_restarted_redeemer_remembers(folder: SwarmFolder) -> None:
    """What was used stays used: it is in a file before the answer leaves."""
    data = invite(redeemer=NODE.peer)
    for peer, used in ((NODE.peer, False), (OTHER.peer, True)):
        fresh = CertificateIssuer(NODE.peer, Issuer(SWARM, OWNER), folder.node("server"), FixedClock())
        if used:
            with pytest.raises(NotAMember):
                fresh.redeem(data, peer, NOBODY_OUT)
        else:
            fresh.redeem(data, peer, NOBODY_OUT)
    assert folder.node("server").redeemed() == {parse_id(data).hex(): NODE.peer}


@pytest.mark.parametrize(
    ("data", "out"),
    [
        (invite(expires_at=NOW), NOBODY_OUT),
        (invite(expires_at=float("nan")), NOBODY_OUT),
        (invite(redeemer=OTHER.peer), NOBODY_OUT),
        (invite(OTHER), NOBODY_OUT),
        (invite(id=b"r" * 16), Revocations(SWARM, 1, invites=frozenset([b"r" * 16]))),
        (invite(), Revocations(SWARM, 1, nodes=frozenset([NODE.peer]))),
        (invite()[:-1], NOBODY_OUT),
    ],
)
def test_invites_that_are_refused(
    redeemer: CertificateIssuer, data: bytes, out: Revocations, folder: SwarmFolder
) -> None:
    """Expired, for another redeemer or swarm, revoked, damaged; none of them is noted as used."""
    with pytest.raises(NotAMember):
        redeemer.redeem(data, NODE.peer, out)
    assert folder.node("server").redeemed() == {}


def test_renewal(redeemer: CertificateIssuer) -> None:
    """A certificate is renewed for its own node, also some time after its end; never for a revoked one."""
    present = certificate(invite=b"i" * 16)
    renewed = verify_certificate(redeemer.renew(present, NODE.peer, NOBODY_OUT), SWARM, NOW)
    assert (renewed.issuer, renewed.invite) == (DELEGATE.peer, b"i" * 16)
    assert renewed.expires_at == NOW + CERTIFICATE_LIFETIME_S
    late = certificate(issued_at=NOW - RENEWAL_WINDOW_S, expires_at=NOW - RENEWAL_WINDOW_S + 10)
    assert redeemer.renew(late, NODE.peer, NOBODY_OUT)
    too_late = certificate(issued_at=NOW - RENEWAL_WINDOW_S - 20, expires_at=NOW - RENEWAL_WINDOW_S - 10)
    for data, peer, out in (
        (present, OTHER.peer, NOBODY_OUT),
        (too_late, NODE.peer, NOBODY_OUT),
        (present, NODE.peer, Revocations(SWARM, 1, nodes=frozenset([NODE.peer]))),
        (present, NODE.peer, Revocations(SWARM, 1, invites=frozenset([b"i" * 16]))),
    ):
        with pytest.raises(NotAMember):
            redeemer.renew(data, peer, out)


def test_an_ended_delegation_certifies_nobody(folder: SwarmFolder) -> None:
    """And an invite that it could not serve is not used up."""
    ended = CertificateIssuer(
        DELEGATE.peer, Issuer(SWARM, DELEGATE, delegation(NOW), NOW), folder.node("server"), FixedClock()
    )
    with pytest.raises(NotAMember, match="delegation"):
        ended.redeem(invite(), NODE.peer, NOBODY_OUT)
    assert folder.node("server").redeemed() == {}


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
    """Stolen bytes make nobody a member."""
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


def test_files_are_private_and_whole(folder: SwarmFolder) -> None:
    """The owner's key can be read by its owner alone, and a second swarm does not replace it."""
    owner = folder.create_owner()
    assert (folder.path / "owner.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="already"):
        folder.create_owner()
    assert folder.owner().peer == owner.peer
    node = folder.node("server")
    assert node.kept() is None
    node.keep(StoredMembership(SWARM, b"certificate", ("ticket",)))
    assert node.kept() == StoredMembership(SWARM, b"certificate", ("ticket",))
    assert (node.path / "member.json").stat().st_mode & 0o777 == 0o600
    (node.path / "member.json").write_bytes(b"{}")
    with pytest.raises(UsageError, match="damaged"):
        node.kept()
    (folder.path / "revocations").write_bytes(b"x")
    with pytest.raises(UsageError, match="damaged"):
        MembershipState(SWARM, folder, FixedClock())
