"""Tokenizers and chat templates, by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.errors import ModelNotFound, UsageError
from shoal.model.weights.checkpoint import Checkpoint

Message = Mapping[str, str]


class Tokenizer:
    """A thin, typed face of a transformers tokenizer."""

    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        own = tokenizer.eos_token_id
        self.eos_token_ids = frozenset(eos_token_ids) | (frozenset() if own is None else frozenset([own]))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model expects at its beginning."""
        return [int(token) for token in self._tokenizer(text)["input_ids"]]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the model's template, up to where the assistant speaks.

        Raises UsageError when the model has no template, or its template refuses the conversation.
        """
        from jinja2 import TemplateError

        if not self.has_chat_template:
            raise UsageError("this model has no chat template: use --raw (or generate from plain text)")
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:
            raise UsageError(f"the model's chat template refuses this conversation: {error}") from error
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(
            self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer beside a checkpoint; end tokens also from its generation_config.json.

    Code that a repository brings along is never run, nor is the user asked to. Raises ModelNotFound when the files for it
    are missing or damaged.
    """
    from transformers import AutoTokenizer

    path = Path(checkpoint.source).expanduser()
    options: dict[str, Any] = {"trust_remote_code": False}
    where = str(path)
    if path.suffix == ".gguf":
        where, options["gguf_file"] = str(path.parent), path.name
    elif not path.is_dir():
        where, options["revision"] = checkpoint.source, checkpoint.revision or None
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # damaged files raise whatever transformers stumbled over: KeyError, AttributeError …
        raise ModelNotFound(f"no tokenizer can be loaded for {checkpoint.source}: {error}") from error
    return Tokenizer(tokenizer, _end_tokens(checkpoint, where))


def _end_tokens(checkpoint: Checkpoint, where: str) -> list[int]:
    from shoal.model.weights.checkpoint_files import parse_config
    from shoal.model.weights.hub import fetch_file

    given = [checkpoint.config.get("eos_token_id")]
    path = Path(where)
    file = path / "generation_config.json"
    if not path.is_dir():
        file = fetch_file(where, "generation_config.json", checkpoint.revision or None) or file
    if file.is_file():
        given.append(parse_config(file.read_bytes(), str(file)).get("eos_token_id"))
    flat = [one for value in given for one in (value if isinstance(value, list) else [value])]
    return [one for one in flat if type(one) is int]  # JSON's true is no token
