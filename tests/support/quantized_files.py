"""Quantized layers as their formats lie in files, made from numbers by the formats' descriptions alone: nothing of the readers
is used. Strings of bits are Python's whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Layer(NamedTuple):
    """A layer as it is stored, and the weights [inputs, outputs] that its format's description gives for it."""

    tensors: dict[str, Array]
    weights: Array


def string_words(codes: Sequence[int], bits: int) -> list[int]:
    """Codes as one string of bits, the first in the lowest ones, cut into 32-bit words."""
    whole = sum(int(code) << (index * bits) for index, code in enumerate(codes))
    return [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(codes) * bits // 32))]


def _down(codes: Array, bits: int) -> Array:
    """[n, columns] → int32 [words, columns]."""
    columns = [string_words(codes[:, column].tolist(), bits) for column in range(codes.shape[1])]
    return np.array(columns, np.uint32).T.copy().view(np.int32)


def _across(codes: Array, bits: int) -> Array:
    """[rows, n] → int32 [rows, words]."""
    return np.array([string_words(row.tolist(), bits) for row in codes], np.uint32).view(np.int32)


def exl2_layer(
    rng: np.random.Generator, key: str, groups: Sequence[tuple[int, int]], outputs: int, largest: float = 0.02
) -> Layer:
    """Random EXL2 with groups of (bits, stored inputs); `outputs` a multiple of 32. fp16 is numpy's own arithmetic."""
    inputs = sum(size for _, size in groups)
    maxima = rng.uniform(largest / 4, largest, len(groups)).astype(np.float16)
    steps = rng.integers(0, 16, (len(groups), outputs))
    order = rng.permutation(inputs)  # the model's input of each stored one
    stored, at = np.zeros((inputs, outputs), np.float16), 0
    words: list[Array] = []
    pairs: list[int] = []
    for group, (bits, size) in enumerate(groups):
        codes = rng.integers(0, 1 << bits, (size, outputs))
        pairs += [bits, sum(len(some) for some in words)]
        words.append(_down(codes, bits))
        unit = np.float16(np.float32(maxima[group]) / np.float32(256))
        scale = ((steps[group] + 1) ** 2).astype(np.float16) * unit
        stored[at : at + size] = (codes - (1 << (bits - 1))).astype(np.float16) * scale
        at += size
    weights = np.zeros_like(stored)
    weights[order] = stored
    inverse = np.zeros(inputs, np.int32)
    inverse[order] = np.arange(inputs)
    return Layer(
        {
            f"{key}.q_weight": np.concatenate(words),
            f"{key}.q_groups": np.array(pairs, np.uint16).view(np.int16),
            f"{key}.q_scale": _across(steps, 4),
            f"{key}.q_scale_max": maxima,
            f"{key}.q_invperm": inverse,
        },
        weights,
    )


def exl2_weights(tensors: dict[str, Array], key: str) -> Array:
    """What EXL2's description makes of a layer's tensors, [inputs, outputs with those that are filled up], in fp16."""
    words = tensors[f"{key}.q_weight"].view(np.uint32)
    pairs = tensors[f"{key}.q_groups"].view(np.uint16).astype(int)
    ends = [*pairs[3::2].tolist(), len(words)]
    inverse = tensors[f"{key}.q_invperm"]
    stored = np.zeros((len(inverse), words.shape[1]), np.float16)
    at = 0
    for group, (bits, first, end) in enumerate(zip(pairs[0::2].tolist(), pairs[1::2].tolist(), ends, strict=True)):
        inputs = (end - first) * 32 // bits
        unit = np.float16(np.float32(tensors[f"{key}.q_scale_max"][group]) / np.float32(256))
        for column in range(words.shape[1]):
            step = int(tensors[f"{key}.q_scale"].view(np.uint32)[group, column // 8]) >> (4 * (column % 8)) & 15
            scale = np.float16((step + 1) ** 2) * unit
            string = sum(int(word) << (32 * index) for index, word in enumerate(words[first:end, column]))
            codes = [(string >> (bits * row) & ((1 << bits) - 1)) - (1 << (bits - 1)) for row in range(inputs)]
            stored[at : at + inputs, column] = np.array(codes, np.float16) * scale
        at += inputs
    return stored[inverse]


def gptq_layer(
    rng: np.random.Generator, key: str, bits: int, group: int, inputs: int, outputs: int, ordered: bool, offset: int = 1
) -> Layer:
    """Random GPTQ; `ordered`: groups follow the inputs, else activations."""
    groups = -(-inputs // group)
    codes = rng.integers(0, 1 << bits, (inputs, outputs))
    zeros = rng.integers(offset, (1 << bits) + offset, (groups, outputs))
    scales = rng.uniform(0.001, 0.01, (groups, outputs)).astype(np.float16)
    places = np.arange(inputs) // group
    if not ordered:
        places = rng.permutation(places)
    weights = scales[places] * (codes - zeros[places]).astype(np.float16)
    return Layer(
        {
            f"{key}.qweight": _down(codes, bits),
            f"{key}.qzeros": _across(zeros - offset, bits),
            f"{key}.scales": scales,
            f"{key}.g_idx": places.astype(np.int32),
        },
        weights,
    )


def awq_layer(rng: np.random.Generator, key: str, group: int, inputs: int, outputs: int) -> Layer:
    """Random AWQ: the output of each four bits of a word, from the lowest up, is 0, 2, 4, 6, 1, 3, 5, 7 of eight."""
    codes = rng.integers(0, 16, (inputs, outputs))
    zeros = rng.integers(0, 16, (inputs // group, outputs))
    scales = rng.uniform(0.001, 0.01, (inputs // group, outputs)).astype(np.float16)
    weights = (codes - zeros.repeat(group, 0)).astype(np.float16) * scales.repeat(group, 0)

    def mixed(some: Array) -> Array:
        return some.reshape(len(some), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(some), -1)

    return Layer(
        {
            f"{key}.qweight": _across(mixed(codes), 4),
            f"{key}.qzeros": _across(mixed(zeros), 4),
            f"{key}.scales": scales,
        },
        weights,
    )


def compressed_layer(
    rng: np.random.Generator, key: str, bits: int, group: int, inputs: int, outputs: int, symmetric: bool, ordered: bool
) -> Layer:
    """Random pack-quantized compressed-tensors; codes and zero points are stored with 2^(bits − 1) added."""
    groups, least = -(-inputs // group), -(1 << (bits - 1))
    codes = rng.integers(least, -least, (outputs, inputs))
    zeros = np.zeros((outputs, groups), np.int64) if symmetric else rng.integers(least, -least, (outputs, groups))
    scales = rng.uniform(0.001, 0.01, (outputs, groups)).astype(np.float16)
    places = np.arange(inputs) // group if ordered else rng.permutation(np.arange(inputs) // group)
    weights = (codes - zeros[:, places]).astype(np.float16) * scales[:, places]
    tensors = {
        f"{key}.weight_packed": _across(codes - least, bits),
        f"{key}.weight_scale": scales,
        f"{key}.weight_shape": np.array([outputs, inputs], np.int64),
    }
    if not symmetric:
        tensors[f"{key}.weight_zero_point"] = _down(zeros - least, bits)
    if not ordered:
        tensors[f"{key}.weight_g_idx"] = places.astype(np.int32)
    return Layer(tensors, weights.T)
