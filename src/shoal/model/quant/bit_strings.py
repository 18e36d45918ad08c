"""Codes of few bits as strings of bits in 32-bit words, lowest bit first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WORD_BITS = 32

Words = npt.NDArray[np.uint32]
Codes = npt.NDArray[np.uint8]


def unpack_down(words: Words, bits: int, count: int) -> Codes:
    """Words [n, columns], each column one string downwards → its first `count` codes [count, columns].

    32 codes fill exactly `bits` words, so that every 32nd code begins a word. Raises ValueError when there are fewer.
    """
    if count * bits > words.shape[0] * WORD_BITS:
        raise ValueError(f"{words.shape[0]} words hold no {count} codes of {bits} bits")
    whole = -(-count // WORD_BITS)
    filled = np.zeros((whole * bits, words.shape[1]), np.uint32)
    filled[: min(len(words), len(filled))] = words[: len(filled)]
    blocks = filled.reshape(whole, bits, -1)
    out = np.empty((whole, WORD_BITS, words.shape[1]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for index in range(WORD_BITS):
        word, shift = divmod(index * bits, WORD_BITS)
        code = blocks[:, word] >> np.uint32(shift)
        if shift + bits > WORD_BITS:
            code |= blocks[:, word + 1] << np.uint32(WORD_BITS - shift)
        out[:, index] = code & mask
    return out.reshape(whole * WORD_BITS, -1)[:count]


def unpack_across(words: Words, bits: int, count: int) -> Codes:
    """Words [rows, n], each row one string to the right → its first `count` codes [rows, count]."""
    return np.ascontiguousarray(unpack_down(np.ascontiguousarray(words.T), bits, count).T)


def pack_down(codes: Codes, bits: int) -> Words:
    """Codes [count, columns], each column one string downwards → words [n, columns]: what `unpack_down` reads."""
    count, columns = codes.shape
    whole = -(-count // WORD_BITS)
    filled = np.zeros((whole * WORD_BITS, columns), np.uint32)
    filled[:count] = codes
    blocks = filled.reshape(whole, WORD_BITS, columns)
    out = np.zeros((whole, bits, columns), np.uint32)
    for index in range(WORD_BITS):
        word, shift = divmod(index * bits, WORD_BITS)
        out[:, word] |= blocks[:, index] << np.uint32(shift)
        if shift + bits > WORD_BITS:
            out[:, word + 1] |= blocks[:, index] >> np.uint32(WORD_BITS - shift)
    return out.reshape(whole * bits, columns)[: -(-count * bits // WORD_BITS)]


def pack_across(codes: Codes, bits: int) -> Words:
    """Codes [rows, count], each row one string to the right → words [rows, n]."""
    return np.ascontiguousarray(pack_down(np.ascontiguousarray(codes.T), bits).T)
