"""Whom a share of a server is counted for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from shoal.types import PeerId


class Account(NamedTuple):
    """One that has a share, and how many times a stranger's that share is."""

    name: str
    weight: int = 1


class Accounts:
    """Which account a client's key is counted for.

    Keys are free, so a stranger's is counted for the address that it comes from. A key that costs something has an account of
    its own: that of a member of a private swarm (`members`), and one that the owner `raised`.
    """

    def __init__(self, raised: Mapping[PeerId, int] = MappingProxyType({}), members: bool = False) -> None:
        self._raised = raised
        self._members = members

    def of(self, key: PeerId, source: str) -> Account:
        """The account of a node that comes from this source; empty: from where is not known."""
        if key in self._raised:
            return Account(key, self._raised[key])
        return Account(key if self._members else source or "unknown")
