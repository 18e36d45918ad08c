"""Which files are a model: those that transformers would load, or the parts of a GGUF file. Half a download is named."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from shoal.errors import CheckpointError, ModelNotFound

SINGLE = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX = f"model{INDEX_SUFFIX}"

EXL2_STEM = "output"

MAX_PARTS = 4096
NAMED_FILES = 5
"""Of the files that are missing, in an error."""

_PLAIN_NAME = re.compile(r"[\w.-]+", re.ASCII)
_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.(?P<kind>safetensors|gguf)", re.ASCII)


class Part(NamedTuple):
    """A file that is one of several, by its name."""

    stem: str
    number: int
    total: int
    kind: str

    def name(self, number: int) -> str:
        """What the part of this number is called; they begin with 1."""
        return f"{self.stem}-{number:05}-of-{self.total:05}.{self.kind}"

    @property
    def all(self) -> list[str]:
        """The names of all parts."""
        return [self.name(number) for number in range(1, self.total + 1)]


def part_of(name: str) -> Part | None:
    """What a file's name says of its part; None where it is no part of anything."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    part = Part(found["stem"], int(found["number"]), int(found["count"]), found["kind"])
    return part if 1 <= part.number <= part.total <= MAX_PARTS else None


def chosen_weights(where: str, config: Mapping[str, Any]) -> str | None:
    """The file of weights that a configuration names, or its index of several; None where it names none.

    Raises CheckpointError for a file of another kind, and for one that does not lie beside it.
    """
    chosen = config.get("transformers_weights")
    if chosen is None:
        return None
    if not isinstance(chosen, str) or not chosen.endswith((".safetensors", INDEX_SUFFIX)):
        raise CheckpointError(
            f"{where}: transformers_weights is {chosen!r}, which is neither a *.safetensors file nor an index of such"
        )
    return chosen if _PLAIN_NAME.fullmatch(chosen) else whole(where, (), [chosen])[0]


def is_index(chosen: str | None) -> bool:
    """Whether a file of weights that was chosen is an index of several."""
    return chosen is not None and chosen.endswith(INDEX_SUFFIX)


def weight_files(
    where: str, held: Collection[str], indexed: Sequence[str] | None, chosen: str | None = None
) -> list[str]:
    """The *.safetensors files of a model among those that are there; other weights beside them are not the model's.

    `indexed` are the files that its index names, `chosen` is what its configuration names (`chosen_weights`). Raises
    CheckpointError for half a download, ModelNotFound where there is nothing that transformers would load.
    """
    if chosen is not None:
        return whole(where, held, indexed if is_index(chosen) and indexed is not None else [chosen])
    if SINGLE in held:
        return [SINGLE]
    if indexed is not None:
        return whole(where, held, indexed)
    parts = [part for name in sorted(held) if (part := part_of(name)) is not None and part.kind == "safetensors"]
    if parts and len({(part.stem, part.total) for part in parts}) == 1:
        return whole(where, held, parts[0].all)
    others = f"; {_named(sorted(held))} is not what transformers would load" if held else ""
    raise ModelNotFound(f"{where} has no weights: there is neither {SINGLE} nor {INDEX}{others}")


def exl2_files(where: str, held: Collection[str]) -> list[str]:
    """The files of an EXL2 checkpoint: `output.safetensors`, or its parts. An index beside them is of the model that it was
    made from. Raises CheckpointError for half a download, ModelNotFound where there are none."""
    parts = [part for name in held if (part := part_of(name)) is not None and part.stem == EXL2_STEM]
    if parts:
        return whole(where, held, parts[0].all)
    if f"{EXL2_STEM}.safetensors" in held:
        return [f"{EXL2_STEM}.safetensors"]
    return weight_files(where, held, None)


def exl3_files(where: str, held: Collection[str], indexed: Sequence[str] | None) -> list[str]:
    """The files of an EXL3 checkpoint, which have transformers' names. An index beside them may be of the model that it was
    made from: it counts where all the files that it names are there. Raises CheckpointError for half a download,
    ModelNotFound where there are none."""
    fresh = indexed is not None and set(indexed) <= set(held)
    return weight_files(where, held, indexed if fresh else None)


def whole(where: str, held: Collection[str], wanted: Sequence[str]) -> list[str]:
    """The files that are wanted, in order; raises CheckpointError where some are missing."""
    files = sorted(set(wanted))
    if missing := [name for name in files if name not in held]:
        raise CheckpointError(
            f"{where} is half a download: {len(missing)} of {len(files)} files are missing ({_named(missing)})"
        )
    return files


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_FILES]) + (" …" if len(names) > NAMED_FILES else "")
