"""Every error that Shoal raises on purpose, by the party that has to act.

::

    ShoalError
    ├── UsageError              a mistake on this side: arguments, files, names
    │   ├── ModelNotFound       no such model, path or revision
    │   ├── CheckpointError     a weights file that is truncated, lying or incomplete
    │   ├── UnsupportedModel    a model_type or option that this version lacks
    │   ├── SpanError           blocks outside the model, or an empty span
    │   ├── TicketError         a ticket that does not parse
    │   ├── InviteError         an invite or delegation that does not parse, has expired or is for somebody else
    │   └── InvalidMessage      a message that this program may not send: a mistake in it
    ├── PeerError               the remote peer broke the rules or is not who it should be
    │   ├── ProtocolError       a frame or message that the wire specification forbids
    │   │   └── WrongRows       rows, or a word about them, that no sound session has
    │   ├── UnknownQuestion     the answerer runs a version that does not know this question
    │   ├── IdentityError       the peer's key is not the node id that was dialled
    │   ├── RecordError         a record that is forged, expired or oversized
    │   ├── FingerprintMismatch the peer serves another checkpoint under the same name
    │   ├── SessionLost         the peer no longer has the session
    │   │   └── SessionFenced   a later process of its client has taken it up
    │   ├── SessionBusy         the peer is opening this session already
    │   ├── NotHeld             the peer has moved: it holds other blocks than its record said
    │   ├── NotAMember          the peer cannot show that it belongs to this private swarm, or says that this side cannot
    │   └── Refused             the peer said no, for a reason that it gave
    ├── NetworkError            nobody is at fault but the path between
    │   ├── DialError           no address answered in time
    │   ├── ChannelClosed       the connection ended
    │   └── CorruptFrame        bytes changed on the way
    └── CapacityError           everybody is right and there is not enough
        ├── ServerFull          try again after `retry_after` seconds
        ├── NoRoute             some blocks have no server; `missing` says which
        └── GrantExceeded       a session longer than it was granted
"""

from __future__ import annotations

from typing import Self


class ShoalError(Exception):
    """Base of all. `party` names who has to act: this side, peer, network or capacity; `peer` which one, if known."""

    party = "this side"
    peer: str | None = None

    def of_peer(self, peer: str) -> Self:
        """This error, which now names the peer that it is about."""
        self.peer = peer
        return self


class UsageError(ShoalError, ValueError):
    """A mistake on this side; `field` names the option that is wrong, if it is one."""

    def __init__(self, message: str = "", field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ModelNotFound(UsageError):
    """No such model, path or revision."""


class CheckpointError(UsageError):
    """A weights file that is truncated, lying or incomplete."""


class UnsupportedModel(UsageError):
    """A model_type or option that this version does not have."""


class SpanError(UsageError):
    """Blocks outside the model, or an empty span."""


class TicketError(UsageError):
    """A ticket that does not parse."""


class InviteError(UsageError):
    """An invite or delegation that does not parse, has expired, or is for another node."""


class InvalidMessage(UsageError):
    """A message with a field out of its bounds, found before it was sent: a mistake in this program."""


class PeerError(ShoalError):
    """The remote peer broke the rules or is not who it should be."""

    party = "peer"


class ProtocolError(PeerError):
    """A frame or message that the wire specification forbids."""


class WrongRows(ProtocolError):
    """Rows, or a word about them, that cannot be: of another form, not finite, left out where needed, never asked for.

    `relayed`: a hop before the one that they came from may be at fault, since they follow from what that one was sent.
    `ahead`: they are beyond the stream, so that hops on their way may hold more of them.
    """

    def __init__(self, message: str, relayed: bool = False, ahead: bool = False) -> None:
        super().__init__(message)
        self.relayed = relayed
        self.ahead = ahead


class UnknownQuestion(PeerError):
    """A channel began with a question that the version at its other end does not know."""


class IdentityError(PeerError):
    """The peer's key is not the node id that was dialled."""


class RecordError(PeerError):
    """A record that is forged, expired or oversized."""


class FingerprintMismatch(PeerError):
    """The peer serves another checkpoint under the same name."""


class SessionLost(PeerError):
    """The peer no longer has the session (its lease ran out, or it restarted)."""


class SessionFenced(SessionLost):
    """A later process of the client has taken the session up; this one may not go on."""


class SessionBusy(PeerError):
    """Another opening of the same session is under way at the peer; when it is done, the session can be asked for again."""


class NotHeld(PeerError):
    """The server holds other blocks than its record said: it has moved."""


class NotAMember(PeerError):
    """One side's certificate for a private swarm is missing, forged, expired, revoked or of another swarm."""


class Refused(PeerError):
    """The peer refused a request; the message is its reason."""


class NetworkError(ShoalError):
    """Nobody is at fault but the path between."""

    party = "network"


class DialError(NetworkError):
    """No address of the peer answered in time."""


class ChannelClosed(NetworkError):
    """The connection ended, cleanly or not."""


class CorruptFrame(NetworkError):
    """A frame whose hash is wrong: bytes changed on the way."""


class CapacityError(ShoalError):
    """Everybody is right and there is not enough."""

    party = "capacity"


class ServerFull(CapacityError):
    """The server has no room now; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoRoute(CapacityError):
    """Some blocks have no live server; `missing` lists them as half-open (start, stop) pairs."""

    def __init__(self, message: str, missing: tuple[tuple[int, int], ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class GrantExceeded(CapacityError):
    """A session that wants more tokens than it was granted."""
