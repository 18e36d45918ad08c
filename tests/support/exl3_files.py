"""EXL3 by its description alone, with nothing of the reader's: a decoder that goes tile by tile, code by code, and an encoder
that searches the trellis for given weights. Rings of bits are Python's whole numbers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from tests.support.quantized_files import Layer

Array = npt.NDArray[Any]

CODEBOOKS = ("mul1", "mcg", "3inst")
DEVIATIONS = {"mul1": 1.0, "mcg": 1.244, "3inst": 1.244}
"""Of a codebook's numbers; rotated weights are scaled to it."""

ROWS = (0, 1, 8, 9)
CODES = 256
CANDIDATES, LEAST_PATHS = 256, 4
"""How many ways the encoder weighs for a tile at each code, and at least follows; the exact search would weigh 2¹⁶."""


@functools.cache
def state_value(state: int, codebook: str) -> np.float16:
    """The number that 16 bits stand for."""
    if codebook == "mul1":
        product = state * 0x83DCD12D % (1 << 32)
        total = sum(product.to_bytes(4, "little"))
        factor, offset = (Fraction(float(_half(bits))) for bits in (0x1EEE, 0xC931))
        return np.float16(float((1024 + total) * factor + offset))
    product = state * 0xCBAC1FED if codebook == "mcg" else state * 89226354 + 64248484
    pattern = (product & 0x8FFF8FFF) ^ 0x3B603B60
    return np.float16(_half(pattern & 0xFFFF) + _half(pattern >> 16))


@functools.cache
def _numbers(codebook: str) -> Array:
    return np.array([state_value(state, codebook) for state in range(1 << 16)], np.float32)


def _half(bits: int) -> np.float16:
    return np.float16(np.frombuffer(bits.to_bytes(2, "little"), np.float16)[0])


def place(code: int) -> tuple[int, int]:
    """The row and the column of a code in its tile."""
    lane, index = code // 8, code % 8
    return 2 * (lane % 4) + ROWS[index % 4], lane // 4 + 8 * (index // 4)


def decoded_tile(stored: Array, codebook: str) -> Array:
    """int16 [16 · bits] → fp16 [16, 16]."""
    bits, ring = len(stored) // 16, 0
    words = np.frombuffer(stored.tobytes(), "<u4")
    for word in words.tolist():
        ring = ring << 32 | word  # read from its highest bit down
    length, tile = CODES * bits, np.empty((16, 16), np.float16)
    twice = ring << length | ring  # what goes round the end lies in a piece here
    for code in range(CODES):
        last = (code + 1) * bits - 1
        tile[place(code)] = state_value(twice >> (length - 1 - last) & 0xFFFF, codebook)
    return tile


def stored_tile(codes: Sequence[int], bits: int) -> Array:
    """256 codes → int16 [16 · bits]."""
    ring = 0
    for code in codes:
        ring = ring << bits | int(code)
    words = [ring >> (32 * index) & 0xFFFFFFFF for index in reversed(range(8 * bits))]
    return np.array(words, "<u4").view(np.int16)


@functools.cache
def sylvester() -> Array:
    """128 × 128, divided by nothing: the sign is the parity of the bits that both indices have."""
    return np.array([[(-1.0) ** (row & column).bit_count() for column in range(128)] for row in range(128)])


def rotated(matrix: Array) -> Array:
    """Both rotations, in fp64, and what they are divided by. The matrix is its own inverse."""
    turn, (rows, columns) = sylvester(), matrix.shape
    out = matrix.astype(np.float64)
    for first in range(0, rows, 128):
        out[first : first + 128] = turn @ out[first : first + 128]
    for first in range(0, columns, 128):
        out[:, first : first + 128] = out[:, first : first + 128] @ turn
    return out / 128


def decoded(tensors: dict[str, Array], key: str) -> Array:
    """The weights [inputs, outputs] in fp16, with what is filled up."""
    codebook = next((name for name in ("mul1", "mcg") if f"{key}.{name}" in tensors), "3inst")
    trellis = tensors[f"{key}.trellis"]
    rows, columns, _ = trellis.shape
    inner = np.empty((16 * rows, 16 * columns), np.float16)
    for row in range(rows):
        for column in range(columns):
            tile = decoded_tile(trellis[row, column], codebook)
            inner[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = tile
    scales = [_scales(tensors, f"{key}.{side}").astype(np.float64) for side in ("su", "sv")]
    return (scales[0][:, None] * rotated(inner) * scales[1]).astype(np.float16)


def _scales(tensors: dict[str, Array], name: str) -> Array:
    if f"{name}h" in tensors:
        return tensors[f"{name}h"]
    words = tensors[name].view(np.uint16).tolist()
    return np.array([-1.0 if word >> bit & 1 else 1.0 for word in words for bit in range(16)])


def exl3_layer(
    rng: np.random.Generator,
    key: str,
    bits: int,
    inputs: int,
    outputs: int,
    codebook: str = "mul1",
    older: bool = False,
) -> Layer:
    """Random EXL3: any bits are codes. `older`: signs alone."""
    rows, columns = (-(-size // 128) * 8 for size in (inputs, outputs))
    tensors: dict[str, Array] = {
        f"{key}.trellis": rng.integers(-(1 << 15), 1 << 15, (rows, columns, 16 * bits), np.int16)
    }
    for side, count, largest in (("su", 16 * rows, 0.1), ("sv", 16 * columns, 1.5)):
        if older:
            tensors[f"{key}.{side}"] = rng.integers(-(1 << 15), 1 << 15, count // 16, np.int16)
        else:
            scales = rng.uniform(largest / 2, largest, count) * rng.choice((-1, 1), count)
            tensors[f"{key}.{side}h"] = scales.astype(np.float16)
    _flag(tensors, key, codebook)
    return Layer(tensors, decoded(tensors, key)[:inputs, :outputs])


def encoded_layer(
    rng: np.random.Generator, key: str, weights: Array, bits: int, codebook: str = "mul1", bias: Array | None = None
) -> Layer:
    """EXL3 of weights [inputs, outputs], without calibration: scales by root mean squares, rotations, the search."""
    inputs, outputs = weights.shape
    filled = np.zeros([-(-size // 128) * 128 for size in weights.shape])
    filled[:inputs, :outputs] = weights
    by_output = np.sqrt((filled**2).mean(0)) * rng.choice((-1, 1), filled.shape[1])
    by_output = (by_output / np.sqrt((filled**2).mean() + 1e-30)).astype(np.float16)
    filled /= np.where(by_output == 0, 1, by_output.astype(np.float64))
    turned = filled.reshape(len(filled), -1, 128) @ sylvester() / np.sqrt(128)
    by_input = np.sqrt((turned**2).mean((1, 2))) / DEVIATIONS[codebook] * rng.choice((-1, 1), len(filled))
    by_input *= np.sqrt(
        (by_input != 0).mean()
    )  # rows of zeros, too, get their share of the others by the second rotation
    by_input = by_input.astype(np.float16)
    filled /= np.where(by_input == 0, 1, by_input.astype(np.float64))[:, None]
    inner = rotated(filled)
    rows, columns = (size // 16 for size in inner.shape)
    order = [row * 16 + column for row, column in map(place, range(CODES))]
    tiles = inner.reshape(rows, 16, columns, 16).transpose(0, 2, 1, 3).reshape(rows * columns, CODES)[:, order]
    codes = searched(tiles, bits, codebook)
    trellis = np.array([stored_tile(some, bits) for some in codes.tolist()], np.int16).reshape(rows, columns, -1)
    tensors: dict[str, Array] = {f"{key}.trellis": trellis, f"{key}.suh": by_input, f"{key}.svh": by_output}
    _flag(tensors, key, codebook)
    if bias is not None:
        tensors[f"{key}.bias"] = np.pad(bias, (0, 16 * columns - outputs)).astype(np.float16)
    return Layer(tensors, decoded(tensors, key)[:inputs, :outputs])


def _flag(tensors: dict[str, Array], key: str, codebook: str) -> None:
    multipliers = {"mul1": 0x83DCD12D, "mcg": 0xCBAC1FED}
    if codebook in multipliers:
        tensors[f"{key}.{codebook}"] = np.array(multipliers[codebook], np.uint32).view(np.int32)


def searched(tiles: Array, bits: int, codebook: str) -> Array:
    """Numbers [tiles, 256] in the order of codes → codes [tiles, 256] whose numbers are near them.

    A ring has no beginning. So a first search begins half-way round, and its state there where the ring is cut begins and ends
    the second one.
    """
    half = CODES // 2
    start = np.zeros(len(tiles), np.int64)
    first = _path(np.roll(tiles, half, 1), start, bits, codebook, closed=False)
    seam = start
    for code in first[:, :half].T:  # what comes before the cut
        seam = (seam << bits | code) & 0xFFFF
    return _path(tiles, seam, bits, codebook, closed=True)


def _path(tiles: Array, start: Array, bits: int, codebook: str, closed: bool) -> Array:
    """The best codes [tiles, 256] from a state on, of several that are followed; `closed`: they end in that state."""
    numbers, ways, count = _numbers(codebook), 1 << bits, len(tiles)
    kept = max(LEAST_PATHS, CANDIDATES // ways)
    forced = -(-16 // bits) if closed else 0
    states, costs = start[:, None], np.zeros((count, 1), np.float32)
    steps: list[tuple[Array, Array]] = []  # of each kept path the one it goes on from, and its code
    for index in range(CODES):
        following = (states[:, :, None] << bits | np.arange(ways)) & 0xFFFF
        error = (numbers[following] - tiles[:, index, None, None].astype(np.float32)) ** 2
        if closed and index >= CODES - forced:
            wanted = (start[:, None, None] >> (bits * (CODES - 1 - index))) & (ways - 1)
            fits = np.arange(ways) == wanted
            below = 16 - bits * (CODES - 1 - index)  # the first one that is forced may be so in part
            if below < bits:
                fits = (np.arange(ways) & ((1 << below) - 1)) == (wanted & ((1 << below) - 1))
            error = np.where(fits, error, np.float32(np.inf))
        flat = (costs[:, :, None] + error).reshape(count, -1)
        best = np.argpartition(flat, min(kept, flat.shape[1]) - 1, 1)[:, :kept]
        costs = np.take_along_axis(flat, best, 1)
        states = np.take_along_axis(following.reshape(count, -1), best, 1)
        steps.append((best // ways, best % ways))
    at, codes = costs.argmin(1)[:, None], np.empty((count, CODES), np.int64)
    for index in reversed(range(CODES)):
        before, code = steps[index]
        codes[:, index] = np.take_along_axis(code, at, 1)[:, 0]
        at = np.take_along_axis(before, at, 1)
    return codes


def write_exl3(source: Path, folder: Path, bits: Callable[[str], int], codebook: str = "mul1") -> dict[str, Array]:
    """A checkpoint in one file as an EXL3 checkpoint: each projection and the head, tied or not, encoded in its own bits.

    Gives the tensors in floats that it stands for, the head among them.
    """
    rng, config = np.random.default_rng(2), json.loads((source / "config.json").read_text())
    stored: dict[str, Array] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        stored[name] = tensor.astype(np.float16)
    floats = dict(stored)
    heads = {"lm_head.weight": stored.get("lm_head.weight", stored["model.embed_tokens.weight"])}
    for name, weights in ({name: one for name, one in stored.items() if name.endswith("proj.weight")} | heads).items():
        key = name.removesuffix(".weight")
        bias = stored.pop(f"{key}.bias", None)
        layer = encoded_layer(rng, key, weights.T.astype(np.float64), bits(key), codebook, bias)
        stored.pop(name, None)
        stored |= layer.tensors
        floats[name] = np.ascontiguousarray(layer.weights.T)
    folder.mkdir()
    save_file({name: np.array(one, order="C") for name, one in stored.items()}, folder / "model.safetensors")
    quantization = {
        "quant_method": "exl3",
        "version": "1.4.1",
        "bits": 3.5,
        "head_bits": 6,
        "calibration": {"rows": 250, "cols": 2048},
        "out_scales": "always",
        "codebook": codebook,
    }
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    (folder / "quantization_config.json").write_text(json.dumps({**quantization, "tensor_storage": {}}))
    return floats
