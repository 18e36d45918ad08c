"""Keys of small order are nobody's; the list of them is computed here from the curve."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.errors import IdentityError
from shoal.transport.node_key import node_peer

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P

Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    """The sum of two points of edwards25519 (RFC 8032, section 5.1)."""
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P


def times(n: int, point: Point) -> Point:
    """The n-fold sum."""
    total = (0, 1)
    while n:
        if n & 1:
            total = add(total, point)
        point, n = add(point, point), n >> 1
    return total


def point_with(y: int) -> Point | None:
    """A point with this y, if there is one."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    for candidate in (x, x * pow(2, (P - 1) // 4, P) % P):
        if candidate * candidate % P == square:
            return candidate, y
    return None


def small_order_encodings() -> list[bytes]:
    """Every 32 bytes that stand for a point of order 1, 2, 4 or 8, canonical or not."""
    generator = next(
        small for point in filter(None, map(point_with, range(2, 100))) if times(4, small := times(L, point)) != (0, 1)
    )
    ys = {times(n, generator)[1] for n in range(8)}
    whole = sorted({y + extra for y in ys for extra in (0, P) if y + extra < 2**255})
    return [(y | sign << 255).to_bytes(32, "little") for y in whole for sign in (0, 1)]


def test_every_small_order_key_is_refused() -> None:
    """All fourteen encodings, and no honest key."""
    encodings = small_order_encodings()
    assert len(encodings) == 14
    for encoding in encodings:
        with pytest.raises(IdentityError, match="small order"):
            node_peer(encoding)
    for _ in range(20):
        key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        assert bytes.fromhex(node_peer(key)) == key


def test_why() -> None:
    """OpenSSL accepts a signature by the identity point for any message; should it stop, the check can go."""
    identity = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), os.urandom(100))
