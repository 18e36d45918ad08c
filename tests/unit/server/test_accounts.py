"""Whom a share is counted for."""

from __future__ import annotations

from shoal.server.accounts import Account, Accounts
from shoal.types import PeerId

ONE, TWO = PeerId("01" * 32), PeerId("02" * 32)


def test_whose_account() -> None:
    """A stranger's key is counted for its address, a member's and a raised one for itself."""
    raised = {ONE: 5}
    assert Accounts(raised).of(ONE, "10.0.0.1") == Account(ONE, 5)
    assert Accounts(raised).of(TWO, "10.0.0.1") == Account("10.0.0.1")
    assert Accounts(raised).of(TWO, "") == Account("unknown")
    assert Accounts(members=True).of(TWO, "10.0.0.1") == Account(TWO)
