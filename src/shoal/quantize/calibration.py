"""Rows of tokens that a model is measured and quantized with, and others that it is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shoal.errors import UsageError
from shoal.files import read_kept

MAX_TEXT_BYTES = 256 << 20
TURNS = 0x9E3779B1
"""An odd number by which rows are put into an order that mixes the text's parts."""

Tokens = npt.NDArray[np.int32]
"""[rows, length]."""

Encode = Callable[[str], list[int]]


class Text(NamedTuple):
    """A text and what it is called."""

    name: str
    content: str


def package_text(name: str) -> Text:
    """`calibration` or `evaluation`: texts that come with the package."""
    return Text(f"shoal {name}", files("shoal.quantize").joinpath("texts", f"{name}.txt").read_text("utf-8"))


def read_text(path: Path) -> Text:
    """A text file that the user names; raises UsageError where there is none, or it is not UTF-8."""
    try:
        return Text(path.name, read_kept(path, MAX_TEXT_BYTES, "text").decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8", "calibration") from error


def token_rows(texts: Sequence[Text], encode: Encode, rows: int, length: int) -> Tokens:
    """Rows of tokens from evenly chosen places of the texts, none twice, in a fixed order that mixes them.

    Raises UsageError where the texts have too few tokens.
    """
    tokens = np.array([token for text in texts for token in encode(text.content)], np.int32)
    there = len(tokens) // length
    if there < rows:
        names = ", ".join(text.name for text in texts)
        raise UsageError(f"{names} has {len(tokens):,} tokens: {rows} rows of {length} need {rows * length:,}", "rows")
    chosen = np.arange(rows) * there // rows
    order = sorted(range(rows), key=lambda row: row * TURNS & 0xFFFFFFFF)
    return np.stack([tokens[place * length : (place + 1) * length] for place in chosen[order]])


def digest_of(tokens: Tokens) -> str:
    """16 hexadecimal digits for rows of tokens."""
    content = np.array(tokens.shape, "<i8").tobytes() + tokens.astype("<i4").tobytes()
    return content_digest(content)


def content_digest(content: bytes) -> str:
    """16 hexadecimal digits for any bytes."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
