"""The numbers that pages state are the code's."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.client.client_options import KEPT_REPLY_S
from shoal.client.server_probe import LOOK_S as LOOK_AT_SERVERS_S
from shoal.client.session.heartbeat import PING_ACTIVE_S, SILENCE_S
from shoal.client.session.hop_client import TICK_S
from shoal.engine.batch_delay import MAX_HOLD_S, SHORT_STEP_S
from shoal.engine.batch_queue import (
    BACKGROUND_ROWS,
    DECODE_ROWS,
    MAX_QUEUED_ROWS,
    PLAIN_STEP_EVERY,
    PREFILL_CHUNK_ROWS,
)
from shoal.engine.prefill_budget import MAX_DECODE_SLOWDOWN, SLICED_ROWS, SLOWEST
from shoal.kv.pages import PAGE_TOKENS
from shoal.kv.prefix import KEY_BYTES
from shoal.protocol.journal import FRAME_ROWS
from shoal.protocol.messages import MAX_RECORD_BYTES
from shoal.server.channel_dispatcher import MAX_CHANNELS_PER_PEER, MAX_EXCHANGES, MAX_FIRST_HEADER_BYTES, MAX_UNSETTLED
from shoal.server.gossip import EXCHANGE_S, TICKET_CHANCE, TOLD_AT_ONCE
from shoal.server.serve_options import BUFFER_SHARE, JOURNAL_SHARE, PREFIX_SHARE
from shoal.server.sessions.dial_limits import (
    DIALS_AT_ONCE,
    DIALS_PER_S,
    FAILED_AT_ONCE,
    FAILED_PER_S,
    SOURCE_CLIENTS,
)
from shoal.server.sessions.hop_session import FIRST_ROWS_S
from shoal.server.sessions.session_service import DRAIN_S, MAX_LEASE_S
from shoal.server.sessions.shares import IDLE_S
from shoal.swarm.directory.directory import (
    MAX_EXCHANGES_PER_MINUTE,
    MAX_EXCHANGES_PER_SOURCE,
    MAX_LOOKED_AT_PER_MINUTE,
    MAX_LOOKED_AT_PER_SOURCE,
    MAX_NEW_PER_MINUTE,
    MAX_RECORDS,
)
from shoal.swarm.directory.records import MAX_CLOCK_SKEW_S, RECORD_LIFETIME_S, RECORD_RENEWAL_S
from shoal.swarm.membership.credentials import (
    CERTIFICATE_LIFETIME_S,
    MAX_CERTIFICATE_LIFETIME_S,
    RENEWAL_WINDOW_S,
)
from shoal.swarm.membership.member_transport import GREETING_TIMEOUT_S, MAX_UNGREETED
from shoal.swarm.placement.rebalancer import FAILED_REST_S, LOOK_S
from shoal.swarm.routing.hop_costs import DEFAULT_BLOCK_ROWS_PER_S, DEFAULT_ROUND_TRIP_S
from shoal.swarm.routing.hop_graph import EXACT_CELLS, MAX_SEARCHES
from shoal.transport.channel import MAX_PENDING_HANDSHAKES, SEND_BUFFER_BYTES
from shoal.transport.tls_channel import READ_BYTES

DOCS = Path(__file__).parent.parent.parent / "docs"
WORDS = {3: "three", 8: "eight", 10: "ten", 16: "sixteen"}
HOUR_S, DAY_S = 3600, 24 * 3600

SAID = {
    "concepts/records.md": [
        f"renewed every {RECORD_RENEWAL_S:.0f} s, valid for {RECORD_LIFETIME_S:.0f} s",
        f"Both together have at most {MAX_RECORD_BYTES:,} bytes",
        f"It keeps at most {MAX_RECORDS:,} of them",
        f"every {WORDS[int(EXCHANGE_S)]} seconds with one random member",
        f"At most {MAX_LOOKED_AT_PER_MINUTE:,} records of one node, and {MAX_LOOKED_AT_PER_SOURCE:,} of one source, are",
        f"A source tells of at most {MAX_NEW_PER_MINUTE:,} nodes not known before",
        f"One node gets {MAX_EXCHANGES_PER_MINUTE} exchanges in a minute, one source {MAX_EXCHANGES_PER_SOURCE:,}",
        f"A record from others may be {MAX_CLOCK_SKEW_S:.0f} s off",
        f"One exchange in {WORDS[round(1 / TICKET_CHANCE)]} is with a member that a ticket names",
        f"no server that answers, for {LOOK_AT_SERVERS_S:g} s",
        f"at most {MAX_CHANNELS_PER_PEER} channels of one node",
    ],
    "concepts/membership.md": [
        f"live {CERTIFICATE_LIFETIME_S / HOUR_S:.0f} hours",
        f"up to {RENEWAL_WINDOW_S / DAY_S:.0f} days after their end",
        f"longer than {MAX_CERTIFICATE_LIFETIME_S / DAY_S:.0f} days",
        f"{MAX_UNGREETED} silent channels are kept, for {WORDS[int(GREETING_TIMEOUT_S)]} seconds each",
        f"tells {WORDS[TOLD_AT_ONCE]} members at once",
        f"at most {FAILED_AT_ONCE} times at once and {FAILED_PER_S} times a second after that",
    ],
    "concepts/trust-boundaries.md": [
        f"at most {DIALS_AT_ONCE} dials at once for one client, and {DIALS_PER_S} a second after that",
        f"{DIALS_AT_ONCE * SOURCE_CLIENTS:,} and {DIALS_PER_S * SOURCE_CLIENTS} for the clients of one address",
        f"not answered, at most {FAILED_AT_ONCE} at once for one address, and {FAILED_PER_S} a second after that",
    ],
    "concepts/cache.md": [
        f"*pages*: {PAGE_TOKENS} tokens of one block",
        f"BLAKE2b, {8 * KEY_BYTES} bits",
        f"chunks of {PREFILL_CHUNK_ROWS} rows",
        f"take {PREFIX_SHARE:.0%} of what".replace("%", " %"),
        f"beside {JOURNAL_SHARE:.0%} for journals, {BUFFER_SHARE:.0%}".replace("%", " %"),
    ],
    "concepts/shares.md": [
        f"no rows for {IDLE_S:.0f} s",
        f"is {FIRST_ROWS_S:.0f} s, however long",
        f"| not of a session | {MAX_UNSETTLED} |",
        f"| exchanges of records | {MAX_EXCHANGES} |",
        f"| handshakes | {MAX_PENDING_HANDSHAKES} |",
        f"headers of at most {MAX_FIRST_HEADER_BYTES:,} bytes",
        f"{BUFFER_SHARE:.0%} of what the weights leave".replace("%", " %"),
        f"{FRAME_ROWS} rows",
        f"reads {READ_BYTES // 1024} KiB at once",
        f"at most {SEND_BUFFER_BYTES // 1024} KiB",
    ],
    "concepts/batching.md": [
        f"at most {DECODE_ROWS} rows waiting is *decoding*",
        f"they get {BACKGROUND_ROWS} rows beside",
        f"At most {MAX_QUEUED_ROWS:,} rows wait",
        f"at most half of a usual step and at most {MAX_HOLD_S} s",
        f"take {MAX_DECODE_SLOWDOWN} times",
        f"at least 1 ÷ {SLOWEST} of the rate",
        f"a step takes {PREFILL_CHUNK_ROWS} rows",
        f"lower than {SLICED_ROWS} rows",
        f"one step in {WORDS[PLAIN_STEP_EVERY]} goes without it",
        f"steps take {1000 * SHORT_STEP_S:.0f} ms at most",
    ],
    "concepts/healing.md": [
        f"(every {PING_ACTIVE_S} s while a step runs) | {SILENCE_S} s",
        f"every {TICK_S} s, never for a row",
        f"after {DRAIN_S:.0f} s at the latest",
    ],
    "concepts/routing.md": [
        f"own measurements | {DEFAULT_ROUND_TRIP_S} s",
        f"else {DEFAULT_BLOCK_ROWS_PER_S:.0f} rows/s through one block",
        f"limits: {EXACT_CELLS:,} cells",
        f"and {MAX_SEARCHES} searches",
    ],
    "guides/serve.md": [
        f"after {DRAIN_S:.0f} s at the latest",
        f"does not try for {WORDS[int(FAILED_REST_S / 60)]} minutes",
    ],
    "guides/use.md": [f"`--keep`, {KEPT_REPLY_S:.0f} s by default, which is the most that servers grant"],
}


@pytest.mark.parametrize(("page", "text"), [(page, text) for page, texts in SAID.items() for text in texts])
def test_said_as_it_is(page: str, text: str) -> None:
    """Each of these stands on its page, with the constant's value."""
    assert text in " ".join((DOCS / page).read_text().split())


def test_what_pages_compare() -> None:
    """Sentences that hold between two constants, or for a word instead of a number."""
    assert KEPT_REPLY_S == MAX_LEASE_S
    assert LOOK_S == 60  # "about once a minute" in the guide on serving
