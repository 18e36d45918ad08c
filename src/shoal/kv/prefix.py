"""Pages that sessions share: whoever sends the same rows from position 0 on gets what was computed from them before.

A full page (of every block of a session's span at once) is found by a hash (BLAKE2b, RFC 7693, 128 bits) of the rows that went
in, chained from position 0 and begun with all else that the result depends on. Since rows are exact, what is found is bit for
bit what would be computed. The key is made from the rows themselves and never taken from a peer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from shoal.kv.cache_storage import zeros
from shoal.kv.pages import PAGE_TOKENS, PageAllocator
from shoal.types import Span

KEY_BYTES = 16


def output_page_bytes(hidden_size: int) -> int:
    """Memory of a page's output rows in fp32."""
    return 4 * PAGE_TOKENS * hidden_size


class Positions(NamedTuple):
    """How blocks treat positions: `encoded` differs where that differs; `by_length`: it depends on the tokens granted."""

    encoded: bytes = b""
    by_length: bool = False


NO_POSITIONS = Positions()


class Scope(msgspec.Struct, frozen=True):
    """What two sessions must have in common, beside their rows, to share a page. `sharer`: the client, or empty for all;
    `positions`: how positions enter attention; `granted_tokens`: 0 unless that depends on them."""

    sharer: str
    span: Span
    numerics: str
    positions: bytes
    granted_tokens: int = 0


class PrefixHash(NamedTuple):
    """How a session's input rows hash: `keys` of its full pages (before them the scope's), `states` of the page that is being
    filled after 0, 1, 2 … of its rows; None where the session went back into a page whose states are gone."""

    keys: tuple[bytes, ...]
    states: tuple[hashlib.blake2b, ...] | None

    @classmethod
    def begin(cls, scope: Scope) -> PrefixHash:
        """Before the first row."""
        key = hashlib.blake2b(msgspec.msgpack.encode(scope), digest_size=KEY_BYTES).digest()
        return cls((key,), (_after(key),))

    @property
    def position(self) -> int | None:
        """How many rows were hashed, where that is known."""
        return None if self.states is None else (len(self.keys) - 1) * PAGE_TOKENS + len(self.states) - 1

    def extended(self, rows: Tensor) -> tuple[PrefixHash, dict[int, bytes]]:
        """The trail after more rows [n, hidden] in fp32, and the keys of the pages that they complete, by their number."""
        if self.states is None:
            return self, {}
        data = rows.cpu().numpy()
        keys, states, done = list(self.keys), list(self.states), 0
        while data.shape[0] - done >= (missing := PAGE_TOKENS + 1 - len(states)):
            state = states[-1].copy()
            state.update(data[done : done + missing].tobytes())
            keys.append(state.digest())
            states = [_after(keys[-1])]
            done += missing
        for row in data[done:]:
            state = states[-1].copy()
            state.update(row.tobytes())
            states.append(state)
        first = len(self.keys) - 1
        return PrefixHash(tuple(keys), tuple(states)), dict(enumerate(keys[first + 1 :], first))

    def truncated(self, position: int) -> PrefixHash:
        """The trail without the rows from `position` on."""
        page, rows = divmod(position, PAGE_TOKENS)
        last = len(self.keys) - 1
        if page > last:
            return self
        if page == last and self.states is not None:
            return PrefixHash(self.keys, self.states[: rows + 1])
        return PrefixHash(self.keys[: page + 1], (_after(self.keys[page]),) if rows == 0 else None)


class PrefixMatch(NamedTuple):
    """What is known about rows before they are computed: `outputs` [k · PAGE_TOKENS, hidden] of the first k pages, the trail
    after all of them, and the keys of the pages that remain, by their number."""

    outputs: Tensor
    trail: PrefixHash
    keys: dict[int, bytes]


class PrefixCache:
    """Finds and keeps full pages of a KV cache, together with the output rows of each. `positions` is what all blocks
    do with positions.

    The sessions of one client share; those of different clients only `between_clients`, since a hit shows in its time.
    """

    def __init__(
        self,
        pages: PageAllocator,
        hidden_size: int,
        positions: Positions = NO_POSITIONS,
        numerics: str = "",
        between_clients: bool = False,
        device: str = "cpu",
    ) -> None:
        self._pages = pages
        self._scope = Scope("", Span(0, 0), numerics, positions.encoded)
        self._by_length = positions.by_length
        self._between_clients = between_clients
        self._outputs = zeros((pages.max_shared, PAGE_TOKENS, hidden_size), torch.float32, device)
        self._nothing = self._outputs.new_empty((0, hidden_size))
        self._sessions: dict[str, _OpenPage] = {}

    def open(self, session: str, span: Span, client: str) -> None:
        """Begin a session that the allocator has opened."""
        sharer = "" if self._between_clients else client
        granted_tokens = self._pages[session].max_tokens if self._by_length else 0
        scope = msgspec.structs.replace(self._scope, sharer=sharer, span=span, granted_tokens=granted_tokens)
        self._sessions[session] = _OpenPage(PrefixHash.begin(scope), self._outputs)

    def close(self, session: str) -> None:
        """Forget a session; closing twice is harmless."""
        self._sessions.pop(session, None)

    def truncate(self, session: str, position: int) -> None:
        """Forget a session's rows from `position` on."""
        self._sessions[session].truncate(position)

    def find(self, session: str, rows: Tensor) -> PrefixMatch:
        """Look up a session's next rows [n, hidden] in fp32. Whole pages that are known become the session's own next ones, if
        it stands at the border of a page; the rows after them are to be computed, and then given to `keep`.

        Raises ValueError if the session's pages do not end where its hash does: keys would be wrong for ever.
        """
        filling = self._sessions[session]
        if not self._pages.max_shared:
            return PrefixMatch(self._nothing, filling.trail, {})
        num_tokens = self._pages[session].num_tokens
        if filling.trail.position not in (None, num_tokens):
            raise ValueError(f"session {session} has {num_tokens} tokens, and {filling.trail.position} were hashed")
        trail, keys = filling.trail.extended(rows)
        places, page = [], num_tokens // PAGE_TOKENS
        if num_tokens % PAGE_TOKENS == 0:
            while page in keys and (place := self._pages.adopt(session, keys[page])) is not None:
                places.append(place)
                del keys[page]
                page += 1
        return PrefixMatch(self._outputs[places].flatten(0, 1) if places else self._nothing, trail, keys)

    def keep(self, session: str, position: int, outputs: Tensor, ahead: PrefixMatch) -> None:
        """Outputs [n, hidden] were computed from the rows at `position` that `find` left over: share pages that are full."""
        if not self._pages.max_shared:
            return
        filling = self._sessions[session]
        filling.trail = ahead.trail
        for page, slot, rows in _by_page(position, outputs):
            if filling.add(page, slot, rows) and page in ahead.keys:
                place = self._pages.share(session, page, ahead.keys[page])
                if place is not None:
                    self._outputs[place] = filling.outputs


class _OpenPage:
    """A session's trail, and the output rows so far of the page that it fills; those of others are not known."""

    def __init__(self, trail: PrefixHash, like: Tensor) -> None:
        self.trail = trail
        self.outputs = like.new_empty(like.shape[1:])
        self._page, self._rows = -1, 0

    def add(self, page: int, slot: int, rows: Tensor) -> bool:
        """More rows of a page; whether all of its rows are there now."""
        if slot == 0:
            self._page, self._rows = page, 0
        if (self._page, self._rows) != (page, slot):
            return False
        self._rows += rows.shape[0]
        self.outputs[slot : self._rows] = rows
        return self._rows == PAGE_TOKENS

    def truncate(self, position: int) -> None:
        """The rows from `position` on are void."""
        self.trail = self.trail.truncated(position)
        page, slot = divmod(position, PAGE_TOKENS)
        if page <= self._page:
            self._rows = min(self._rows, slot) if page == self._page else 0


def _after(key: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(key, digest_size=KEY_BYTES)


def _by_page(position: int, rows: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Rows [n, hidden] at `position` cut where pages end: page, first slot, rows."""
    done = 0
    while done < rows.shape[0]:
        page, slot = divmod(position + done, PAGE_TOKENS)
        yield page, slot, rows[done : done + PAGE_TOKENS - slot]
        done += PAGE_TOKENS - slot
