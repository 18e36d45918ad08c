"""Finds servers for a session's blocks, opens the session at them, and compares their arithmetic with what was before."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence

import msgspec

from shoal.client.session.hop_client import HopClient
from shoal.client.session.planner import Planner, SessionSpec
from shoal.client.session.session_credentials import SessionCredentials
from shoal.clock import Clock
from shoal.errors import NetworkError, NoRoute, NotHeld, ShoalError
from shoal.protocol.messages import SECRET_BYTES, LinkGrant, Open
from shoal.protocol.row_stream import Sender
from shoal.swarm.directory.records import SignedRecord
from shoal.swarm.routing.route_planner import RouteOptions
from shoal.types import Hop, Span

AVOID_S = 10.0
"""How long a hop that was lost is not chosen again while others cover its blocks."""

Pairs = frozenset[tuple[str, str]]
"""(from, to): servers of which the first does not reach the second."""


class ServerSelector:
    """`exact` until rows have gone through arithmetic that gives other bits than the first hops'."""

    def __init__(
        self, terms: SessionSpec, planner: Planner, sender: Sender, generations: Iterator[int], clock: Clock
    ) -> None:
        self.exact = True
        self._terms = terms
        self._planner = planner
        self._sender = sender
        self._generations = generations
        self._clock = clock
        self._avoid: dict[str, float] = {}
        self._lost_at: dict[str, float] = {}
        self._reference: dict[int, tuple[str, str]] = {}

    def avoid(self, peer: str) -> None:
        """Do not choose this server for a while."""
        self._avoid[peer] = self._clock.monotonic()

    def clear(self) -> None:
        """Choose anybody again; those out of reach are known to the planner."""
        self._avoid.clear()

    async def refresh(self) -> None:
        """Ask the swarm for news; raises NetworkError."""
        await self._planner.refresh()

    async def open(self, span: Span, taken: frozenset[str], broken: Pairs, follow: bool = False) -> list[HopClient]:
        """Hops over a span, none of them at servers in `taken`; those that could not be opened are `lost`.

        Raises NoRoute when not enough servers are known.
        """
        controls = [self.control(hop, record) for hop, record in self._route(span, taken, broken)]
        results = await asyncio.gather(*(self._open(one, follow) for one in controls), return_exceptions=True)
        for control, result in zip(controls, results, strict=True):
            if isinstance(result, ShoalError):
                self._refused(control, result)
            elif isinstance(result, BaseException):
                raise result
        return controls

    def control(self, hop: Hop, record: SignedRecord, keys: SessionCredentials | None = None) -> HopClient:
        """A hop that is not open yet."""
        return HopClient(hop, record, keys or SessionCredentials.draw(), self._planner.dialler, self._clock)

    def _refused(self, control: HopClient, error: ShoalError) -> None:
        moved = isinstance(error, NotHeld)  # it holds other blocks than its record says: wait for its next one
        if moved or isinstance(error, NetworkError):
            self._planner.failed(control.record.record)
        if not moved:
            self.avoid(control.peer)
        control.fail(error)

    def _route(self, span: Span, taken: frozenset[str], broken: Pairs) -> list[tuple[Hop, SignedRecord]]:
        """The planner's best; wishes are given up one after the other when nobody meets them."""
        now = self._clock.monotonic()
        self._avoid = {peer: at for peer, at in self._avoid.items() if now - at < AVOID_S}
        error: NoRoute | None = None
        for options in self._wishes(span, broken):
            try:
                return self._planner.route(self._terms.model, span, options, taken | frozenset(self._avoid))
            except NoRoute as caught:
                error = caught
        assert error is not None
        raise error

    def _wishes(self, span: Span, broken: Pairs) -> Iterator[RouteOptions]:
        """Equal arithmetic first (alone, if it must be), then links that work, then room as far as it is known."""
        asked, tokens = self._terms.options.route, self._terms.options.max_tokens
        keys = {self._reference[block][0] for block in span.blocks() if block in self._reference}
        equal = next(iter(keys)) if len(keys) == 1 else None
        for numerics in dict.fromkeys((equal,) if self._terms.options.exact else (equal, None)):
            for links, num_tokens in dict.fromkeys(((broken, tokens), (frozenset[tuple[str, str]](), tokens))):
                yield msgspec.structs.replace(asked, numerics=numerics, broken_links=links, num_tokens=num_tokens)
            yield msgspec.structs.replace(asked, numerics=numerics, num_tokens=0)

    async def _open(self, control: HopClient, follow: bool) -> None:
        terms, keys = self._terms, control.keys
        upstream = LinkGrant(next(self._generations), terms.me, secrets.token_bytes(SECRET_BYTES))
        request = Open(
            keys.session,
            keys.incarnation,
            keys.secret,
            terms.model.fingerprint,
            control.hop.span,
            terms.options.max_tokens,
            upstream,
            terms.options.keep_s,
            terms.options.row_codec,
            follow,
        )
        await control.open(request, self._sender)

    def agree(self, controls: Sequence[HopClient]) -> None:
        """Compare arithmetic with the first hops': what differs ends `exact`, or is `lost` where exactness is wanted."""
        for control in controls:
            if control.lost is None and not self._agrees(control):
                if self._terms.options.exact:
                    self.avoid(control.peer)
                    control.fail(ShoalError(f"{control.name} computes other bits than this session has so far"))
                else:
                    self.exact = False

    def _agrees(self, control: HopClient) -> bool:
        assert control.numerics is not None
        key, fresh, same = control.numerics.key, self._sender.end == 0, control.numerics.exact
        if not same and self._terms.options.exact:
            return False
        for block, weights in zip(control.hop.span.blocks(), control.weights, strict=True):
            known = (key, weights) if fresh else self._reference.setdefault(block, (key, weights))
            self._reference[block] = known
            same = same and known == (key, weights)
        return same

    def lose(self, control: HopClient) -> None:
        """A hop that is of no use any more is not chosen soon; one that only failed this session may be once more."""
        now = self._clock.monotonic()
        if isinstance(control.lost, NetworkError):
            self.avoid(control.peer)
            self._planner.failed(control.record.record)
        elif now - self._lost_at.get(control.peer, -AVOID_S) < AVOID_S:
            self.avoid(control.peer)
        self._lost_at[control.peer] = now
