"""Invites, certificates and revocation lists: what is signed, and what is believed."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InviteError, NotAMember
from shoal.protocol.messages import MAX_CERTIFICATE_BYTES, MAX_REVOCATIONS_BYTES
from shoal.swarm.membership.credentials import (
    MAX_CERTIFICATE_LIFETIME_S,
    MAX_REVOKED,
    Delegation,
    Invite,
    Revocations,
    parse_invite,
    sign_invite,
    sign_revocations,
    verify_certificate,
    verify_revocations,
)
from tests.unit.swarm.membership.statements import (
    DAY_S,
    DELEGATE,
    NODE,
    NOW,
    OTHER,
    OWNER,
    SWARM,
    certificate,
    delegation,
    revocations,
)


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


def test_node_ids_have_one_form() -> None:
    """A node id followed by a newline would be the same key under another name: no message may hold one."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"swarm": SWARM, "peer": NODE.peer + "\n", "expires_at": NOW}, Delegation)
