"""Which invites and certificates a redeemer turns into a certificate."""

from __future__ import annotations

import pytest

from shoal.errors import NotAMember
from shoal.swarm.membership.certificate_issuer import CertificateIssuer, Issuer
from shoal.swarm.membership.credentials import (
    CERTIFICATE_LIFETIME_S,
    RENEWAL_WINDOW_S,
    Revocations,
    verify_certificate,
)
from shoal.swarm.membership.storage import SwarmFolder
from tests.unit.swarm.directory.test_records import FixedClock
from tests.unit.swarm.membership.statements import (
    DAY_S,
    DELEGATE,
    NOBODY_OUT,
    NODE,
    NOW,
    OTHER,
    OWNER,
    SWARM,
    certificate,
    delegation,
    invite,
    parse_id,
)


@pytest.fixture
def redeemer(folder: SwarmFolder) -> CertificateIssuer:
    """DELEGATE's, by a delegation."""
    issuer = Issuer(SWARM, DELEGATE, delegation(), NOW + 30 * DAY_S)
    return CertificateIssuer(DELEGATE.peer, issuer, folder.node("server"), FixedClock())


def test_an_invite_is_redeemed_once(redeemer: CertificateIssuer) -> None:
    """Its first node may come again, since an answer can get lost; another node never."""
    data = invite()
    first = redeemer.redeem(data, NODE.peer, NOBODY_OUT)
    assert verify_certificate(first, SWARM, NOW).invite == parse_id(data)
    assert verify_certificate(redeemer.redeem(data, NODE.peer, NOBODY_OUT), SWARM, NOW)
    with pytest.raises(NotAMember, match="another node"):
        redeemer.redeem(data, OTHER.peer, NOBODY_OUT)


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
