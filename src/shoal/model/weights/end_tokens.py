"""Which tokens end a text: what the files beside a checkpoint name, and what llama.cpp knows by their texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shoal.model.families.fields import token_ids
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.checkpoint_files import parse_config
from shoal.model.weights.gguf import GgufCheckpoint
from shoal.model.weights.hub import fetch_file

END_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<eos>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 - DeepSeek writes it so
)
"""The texts by which llama.cpp knows tokens that end a text, whatever a GGUF file's fields say (its llama-vocab.cpp)."""

_NO_ENDS: tuple[tuple[str, tuple[frozenset[str], ...]], ...] = (
    (
        "<|end|>",
        tuple(frozenset({one, other}) for one in ("<|return|>", "<|flush|>") for other in ("<|call|>", "<|calls|>")),
    ),
    ("</s>", (frozenset({"<|tool_response>"}),)),
)
"""Texts that end nothing in a vocabulary that has one of these sets: there they stand between an answer's parts."""


def named_end_tokens(checkpoint: Checkpoint) -> frozenset[int]:
    """The ids that a configuration or a GGUF's fields name, and those of a generation_config.json beside them.

    Raises CheckpointError for a damaged generation_config.json.
    """
    path = Path(checkpoint.source).expanduser()
    folder = path.parent if isinstance(checkpoint, GgufCheckpoint) else path
    file: Path | None = folder / "generation_config.json"
    if not folder.is_dir():
        file = fetch_file(checkpoint.source, "generation_config.json", checkpoint.revision or None)
    generation = parse_config(file.read_bytes(), str(file)) if file is not None and file.is_file() else {}
    return frozenset(token_ids(checkpoint.config.get("eos_token_id")) + token_ids(generation.get("eos_token_id")))


def known_by_text(named: frozenset[int], special_token: Callable[[str], int | None]) -> frozenset[int]:
    """The end tokens of a GGUF file: those that are named, and those that are known by their texts.

    `special_token` gives the id of a text that is one special token.
    """
    known = {text: token for text in END_TEXTS if (token := special_token(text)) is not None}
    dropped = {known[text] for text, sets in _NO_ENDS if text in known and any(texts <= known.keys() for texts in sets)}
    return (named | frozenset(known.values())) - dropped
