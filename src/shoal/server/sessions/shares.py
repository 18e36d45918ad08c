"""What one client may take of a server, and who makes room when it is full (docs/concepts/shares.md).

Pure: it knows no sessions but their ids, and no sockets. An account is whom a share is counted for (`server.accounts`): an
address, within which keys share in turn, or a key that costs something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from shoal.clock import Clock
from shoal.errors import ServerFull
from shoal.server.accounts import Account
from shoal.types import PeerId

IDLE_S = 10.0
"""A session without rows for so long is idle: it makes room before one that computes."""

_ROUNDING = 1e-9


class _Excess(NamedTuple):
    """What the owner of a session has: its account, as times of an equal share, and its key."""

    account: float
    key: float


class Amount(NamedTuple):
    """Sessions, and pages of the cache."""

    sessions: float
    pages: float


class AccountUse(NamedTuple):
    """What an account has, and what an equal share would be now."""

    has: Amount
    equal: Amount


class _Held(NamedTuple):
    """One session."""

    account: Account
    key: PeerId
    pages: int
    active_at: float
    computes: bool = False
    attended: bool = True


class Shares:
    """The sessions of a server by account, and the rule by which accounts share it.

    While there is room everybody gets what they ask for. When there is none, a client gets what leaves its account within an
    equal share: accounts beyond theirs make room. Beyond it, a client gets what other keys of its own account have more than it
    would have. Idle sessions go first, then those of whoever has most.
    """

    def __init__(self, capacity: Amount, clock: Clock) -> None:
        self.capacity = capacity
        self.displaced = 0
        self._clock = clock
        self._held: dict[bytes, _Held] = {}

    def open(self, session: bytes, account: Account, key: PeerId, pages: int) -> tuple[bytes, ...]:
        """Count a new session; returns those that make room for it and are not counted any more.

        Raises ServerFull when there is no room and this client has its share.
        """
        now = self._clock.monotonic()
        leaving = self._make_room(account, key, pages, now)
        for one in leaving:
            del self._held[one]
        self.displaced += len(leaving)
        self._held[session] = _Held(account, key, pages, now)
        return leaving

    def __contains__(self, session: bytes) -> bool:
        return session in self._held

    def close(self, session: bytes) -> None:
        """A session has ended; harmless for one that is not counted."""
        self._held.pop(session, None)

    def computes(self, session: bytes) -> None:
        """Rows of this session have come."""
        held = self._held.get(session)
        if held is not None:
            self._held[session] = held._replace(active_at=self._clock.monotonic(), computes=True)

    def attend(self, session: bytes, attended: bool) -> None:
        """Whether the session's client is connected."""
        held = self._held.get(session)
        if held is not None:
            self._held[session] = held._replace(attended=attended)

    def turn(self, session: bytes, account: Account) -> str:
        """In whose turn this session's rows are computed: accounts take turns, and a raised one has several."""
        return account.name if account.weight == 1 else f"{account.name}/{session[0] % account.weight}"

    @property
    def num_accounts(self) -> int:
        """Accounts that have sessions."""
        return len({held.account.name for held in self._held.values()})

    def account_of(self, session: bytes) -> str:
        """Whom a session is counted for; empty for one that is not counted."""
        held = self._held.get(session)
        return "" if held is None else held.account.name

    def greediest(self, count: int) -> list[str]:
        """The accounts that have most, of sessions or of the cache, as times of an equal share."""
        sessions, pages = (max(whole, _ROUNDING) for whole in self.capacity)
        has: dict[Account, Amount] = {}
        for held in self._held.values():
            has[held.account] = _sum(has.get(held.account, Amount(0, 0)), Amount(1, held.pages))
        times = {one.name: max(its.sessions / sessions, its.pages / pages) / one.weight for one, its in has.items()}
        return sorted(times, key=lambda name: -times[name])[:count]

    def use(self, account: Account) -> AccountUse:
        """What an account has, and its equal share among those that have sessions and itself."""
        part = self._parts(account)[account.name]
        has = _amount(held for held in self._held.values() if held.account.name == account.name)
        return AccountUse(has, Amount(self.capacity.sessions * part, self.capacity.pages * part))

    def _parts(self, asking: Account) -> dict[str, float]:
        """The equal share of each account, of 1: the one that asks counts as well."""
        weights = {held.account.name: held.account.weight for held in self._held.values()}
        weights[asking.name] = asking.weight
        whole = sum(weights.values())
        return {name: weight / whole for name, weight in weights.items()}

    def _make_room(self, account: Account, key: PeerId, pages: int, now: float) -> tuple[bytes, ...]:
        asked, parts, left = Amount(1, pages), self._parts(account), dict(self._held)
        leaving: list[bytes] = []
        while missing := self._missing(left.values(), asked):
            mine = _amount(held for held in left.values() if held.account.name == account.name)
            if missing(_sum(mine, asked)) <= parts[account.name] + _ROUNDING:
                beyond = self._beyond_share(left, parts, account, missing)
            else:
                beyond = self._beyond_key(left, account, key, asked, missing)
            if not beyond:
                raise ServerFull(self._why(asked))
            first = min(beyond, key=lambda one: self._order(left[one], beyond[one], now))
            leaving.append(first)
            del left[first]
        return tuple(leaving)

    def _missing(self, held: Iterable[_Held], asked: Amount) -> Callable[[Amount], float] | None:
        """How much of what is missing an amount is, of 1; None when nothing is missing."""
        taken = _sum(_amount(held), asked)
        short = [
            (index, capacity) for index, capacity in enumerate(self.capacity) if taken[index] > capacity + _ROUNDING
        ]
        if not short:
            return None
        return lambda amount: max(amount[index] / max(capacity, _ROUNDING) for index, capacity in short)

    @staticmethod
    def _beyond_share(
        left: dict[bytes, _Held], parts: dict[str, float], asking: Account, missing: Callable[[Amount], float]
    ) -> dict[bytes, _Excess]:
        """Sessions of other accounts that have more than an equal share, each with what its account and its key have."""
        times = {
            name: missing(_amount(held for held in left.values() if held.account.name == name)) / part
            for name, part in parts.items()
        }
        keys = _by_key(left.values(), missing)
        return {
            one: _Excess(times[held.account.name], keys[held.account.name, held.key])
            for one, held in left.items()
            if held.account.name != asking.name and times[held.account.name] > 1 + _ROUNDING
        }

    @staticmethod
    def _beyond_key(
        left: dict[bytes, _Held], account: Account, key: PeerId, asked: Amount, missing: Callable[[Amount], float]
    ) -> dict[bytes, _Excess]:
        """Sessions of the account's other keys that have more than this one would have, each with what its key has."""
        own = {one: held for one, held in left.items() if held.account.name == account.name}
        has = {key: amount for (_, key), amount in _by_key(own.values(), missing).items()}
        wanted = missing(_sum(_amount(held for held in own.values() if held.key == key), asked))
        return {
            one: _Excess(0.0, has[held.key])
            for one, held in own.items()
            if held.key != key and has[held.key] > wanted + _ROUNDING
        }

    @staticmethod
    def _order(held: _Held, excess: _Excess, now: float) -> tuple[bool, bool, float, float, float]:
        """Idle sessions first, of these the ones without a client; then by what the owner has; the longest idle first."""
        idle = not held.computes or now - held.active_at > IDLE_S
        return not idle, idle and held.attended, -excess.account, -excess.key, held.active_at

    def _why(self, asked: Amount) -> str:
        taken = _amount(self._held.values())
        if taken.sessions >= self.capacity.sessions:
            return f"all {self.capacity.sessions:.0f} sessions are taken"
        free = self.capacity.pages - taken.pages
        return f"{asked.pages:.0f} pages of the cache were asked for, and {free:.0f} are free"


def _amount(held: Iterable[_Held]) -> Amount:
    each = [one.pages for one in held]
    return Amount(len(each), sum(each))


def _by_key(held: Iterable[_Held], missing: Callable[[Amount], float]) -> dict[tuple[str, PeerId], float]:
    """What each key of each account has of what is missing."""
    owned: dict[tuple[str, PeerId], list[_Held]] = {}
    for one in held:
        owned.setdefault((one.account.name, one.key), []).append(one)
    return {owner: missing(_amount(sessions)) for owner, sessions in owned.items()}


def _sum(one: Amount, other: Amount) -> Amount:
    return Amount(one.sessions + other.sessions, one.pages + other.pages)
