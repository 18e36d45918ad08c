"""Which public keys may name a node."""

from __future__ import annotations

from shoal.errors import IdentityError
from shoal.types import PeerId, peer_id

_SIGN_BIT = 1 << 255
_SMALL_ORDER = frozenset(
    int.from_bytes(bytes.fromhex(text), "little")
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)
"""The y of every encoding, canonical or not, of the eight curve points whose order divides 8."""


def node_peer(public_key: bytes) -> PeerId:
    """The id of the node with this raw ed25519 key (32 bytes), as somebody claims it.

    Raises IdentityError for a point of small order: OpenSSL accepts signatures for those that anybody can make, without
    any private key (RFC 8032 leaves the check to the application).
    """
    if int.from_bytes(public_key, "little") & ~_SIGN_BIT in _SMALL_ORDER:
        raise IdentityError("a public key of small order belongs to nobody")
    return peer_id(public_key)
