"""What a client is doing, in a few words, for people who wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shoal.types import Span

if TYPE_CHECKING:
    from shoal.client.completion import GrowingReply
    from shoal.client.session.session import Session


class Activity:
    """What is under way now. Written in the client's event loop, read in any thread."""

    def __init__(self) -> None:
        self._under_way: list[Callable[[], str]] = []

    @contextlib.contextmanager
    def doing(self, what: Callable[[], str] | str) -> Iterator[None]:
        """This is under way meanwhile; a text, or what gives one whenever it is asked."""
        entry = (lambda: what) if isinstance(what, str) else what
        self._under_way.append(entry)
        try:
            yield
        finally:
            self._under_way.remove(entry)

    def __str__(self) -> str:
        """The newest that has something to say; empty where nothing is under way."""
        return next((text for entry in reversed(self._under_way) if (text := entry())), "")


def session_waits(session: Session) -> str:
    """What a session waits for before rows can go through it; empty while all is well."""
    state = session.supervisor.state
    if state.failover is None:
        return ""
    if state.search.missing is not None and state.search.missing.missing:
        spans = ", ".join(str(Span(*span)) for span in state.search.missing.missing)
        return f"waiting for blocks {spans}"
    return "looking for another server" if state.opened else "opening a session"


def reply_waits(reply: GrowingReply) -> str:
    """What a reply waits for now; empty before its session is open."""
    session = reply.session
    if session is None or reply.finish_reason:
        return ""
    if trouble := session_waits(session):
        return trouble
    total = len(reply.prompt_ids) + len(reply.token_ids)
    if not reply.prefill_tokens:
        return f"reading the prompt {min(session.returned, total):,} of {total:,}"
    return "waiting for the next token" if reply.token_ids else "choosing the first token"
