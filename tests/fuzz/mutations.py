"""Random changes of bytes: of bits, of numbers, of lengths, and pieces of one input put into another."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
MOST_CHANGES = 4
LONGEST = 1 << 20
"""Mutated inputs are cut off here."""

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def mutated(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with one to MOST_CHANGES changes; the same for the same state of `rng`."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, MOST_CHANGES)):
        rng.choice(MUTATIONS)(rng, data, seeds)
    return bytes(data[:LONGEST])


def _place(rng: random.Random, data: bytearray) -> int:
    return rng.randrange(len(data)) if data else 0


def _turn_bit(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[_place(rng, data)] = rng.randrange(256)


def _set_number(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """A number at the edge of some size, in either order of bytes."""
    size, at = rng.choice((1, 2, 4, 8)), _place(rng, data)
    number = (rng.choice(EDGES) + rng.randint(-2, 2)) % (1 << 8 * size)
    data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _insert(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = _place(rng, data)
    data[at:at] = rng.randbytes(rng.randint(1, 8))


def _delete(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = _place(rng, data)
    del data[at : at + rng.randint(1, 16)]


def _repeat(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """A piece many times over: depth, and lists that are too long."""
    at = _place(rng, data)
    data[at:at] = data[at : at + rng.randint(1, 4)] * rng.choice((2, 17, 300))


def _cut(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    del data[_place(rng, data) :]


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """A piece of another input."""
    other = rng.choice(seeds)
    first = rng.randrange(len(other) + 1)
    piece = other[first : first + rng.randint(1, 64)]
    at = _place(rng, data)
    data[at : at + rng.choice((0, len(piece)))] = piece


MUTATIONS: tuple[Mutation, ...] = (
    *(_turn_bit, _set_byte, _set_byte, _set_number, _set_number),
    *(_insert, _delete, _repeat, _cut, _splice),
)
