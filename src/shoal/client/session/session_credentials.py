"""What proves a session to be a client's."""

from __future__ import annotations

import secrets

import msgspec

from shoal.protocol.messages import SECRET_BYTES


class SessionCredentials(msgspec.Struct, frozen=True):
    """By what a hop knows a session, and what proves it to be the client's. Every hop has its own."""

    session: bytes
    secret: bytes
    incarnation: int = 0

    @classmethod
    def draw(cls) -> SessionCredentials:
        """Fresh ones."""
        return cls(secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(SECRET_BYTES))
