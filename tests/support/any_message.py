"""Every message of the wire, for tests that listen to whatever comes."""

from __future__ import annotations

from shoal.protocol.messages import DIRECTORY, LINK, MEMBERSHIP, SESSION, SESSION_TYPES, Message, Vocabulary

MESSAGES: tuple[type[Message], ...] = tuple(
    dict.fromkeys((*DIRECTORY.types, *SESSION_TYPES, *SESSION.types, *LINK.types, *MEMBERSHIP.types))
)

ANY: Vocabulary[Message] = Vocabulary("a test", MESSAGES)
