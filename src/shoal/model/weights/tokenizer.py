"""Tokenizers and chat templates: converted by transformers once, computed by the `tokenizers` library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tokenizers

from shoal.errors import ModelNotFound, UsageError
from shoal.model.families import model_config
from shoal.model.weights.chat_template import ChatTemplate, Message
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.end_tokens import known_by_text, named_end_tokens
from shoal.model.weights.gguf import GgufCheckpoint
from shoal.model.weights.hub import cached_folder
from shoal.model.weights.tokenizer_cache import TokenizerCache, TokenizerData, cache_folder
from shoal.model.weights.tokenizer_conversion import convert

SOURCE_SUFFIXES = (".bpe", ".jinja", ".json", ".model", ".tiktoken", ".txt")
"""The files of a checkpoint's folder that a tokenizer may be made from."""


class Tokenizer:
    """A model's tokenizer, its chat template and its end tokens.

    `by_text`: end tokens are known by their texts too. Raises ValueError for data that the `tokenizers` library does not take.
    """

    def __init__(self, data: TokenizerData, end_tokens: frozenset[int] = frozenset(), by_text: bool = False) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(bytes(data.tokenizer))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"the tokenizer's data is of no use: {error}") from error
        self._tokenizer.encode_special_tokens = data.splits_special_tokens
        self._data = data
        self._template: ChatTemplate | None = None
        self._special = {
            token.content: index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        named = end_tokens if data.eos_token_id is None else end_tokens | {data.eos_token_id}
        self.eos_token_ids = known_by_text(named, self.special_token) if by_text else named

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made for conversations."""
        return bool(self._data.chat_templates)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model expects at its beginning."""
        return self._tokenizer.encode(text).ids

    def special_token(self, text: str) -> int | None:
        """The id of a text that is one special token, which no decoded text ever shows; None for any other."""
        return self._special.get(text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the model's template, up to where the assistant speaks.

        Raises UsageError when the model has no template, or its template refuses the conversation.
        """
        if self._template is None:
            self._template = ChatTemplate(self.chat_template(), self._data.special_tokens)
        return self._tokenizer.encode(self._template.render(messages), add_special_tokens=False).ids

    def chat_template(self) -> str:
        """The template that conversations are written in; raises UsageError when the model has none."""
        templates = self._data.chat_templates
        if not templates:
            raise UsageError("this model has no chat template: use --raw (or generate from plain text)")
        if not templates.get("default"):
            raise UsageError(f"this model has no default chat template, only {', '.join(sorted(templates))}")
        return templates["default"]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)


def load_tokenizer(checkpoint: Checkpoint, cache: TokenizerCache | None = None) -> Tokenizer:
    """The tokenizer beside a checkpoint or in a GGUF file, with all end tokens that these name.

    `cache` is the one in the cache folder unless given. Raises ModelNotFound when the tokenizer's files are missing or
    damaged, CheckpointError for a damaged generation_config.json.
    """
    source, ends = _TokenizerSource(checkpoint), named_end_tokens(checkpoint)
    kept = TokenizerCache(cache_folder(), _versions()) if cache is None else cache
    digest = source.digest()
    data = kept.load(digest)
    if data is not None:
        try:
            return _tokenizer(data, checkpoint, ends)
        except ValueError:
            kept.drop(digest)
    try:
        data = convert(source.where, **source.options)
        tokenizer = _tokenizer(data, checkpoint, ends)
    except Exception as error:  # damaged files raise whatever transformers stumbled over: KeyError, AttributeError …
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ModelNotFound(f"no tokenizer can be loaded for {checkpoint.source}: {why}") from error
    kept.store(source.digest(), data)  # anew: what the hub's cache lacked is there now
    return tokenizer


def _tokenizer(data: TokenizerData, checkpoint: Checkpoint, named: frozenset[int]) -> Tokenizer:
    """With the end token of transformers' class where neither files nor tokenizer name one."""
    if not named and data.eos_token_id is None:
        named = frozenset(model_config(checkpoint.config).eos_token_ids)
    return Tokenizer(data, named, by_text=isinstance(checkpoint, GgufCheckpoint))


def _versions() -> tuple[str, ...]:
    """What converts: another version of either may convert to something else."""
    return (f"transformers {version('transformers')}", f"tokenizers {tokenizers.__version__}")


class _TokenizerSource:
    """Where transformers finds a checkpoint's tokenizer, and a hash of what it is made from."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        path = Path(checkpoint.source).expanduser()
        self._folder = path if path.is_dir() else None
        self.where, self.options = str(path), dict[str, Any]()
        if isinstance(checkpoint, GgufCheckpoint):
            self.where, self.options = str(path.parent), {"gguf_file": path.name}
        elif self._folder is None:
            self.where, self.options = checkpoint.source, {"revision": checkpoint.revision or None}

    def digest(self) -> str:
        """32 hexadecimal digits over the content: a GGUF's header, or the files of the folder or of the hub's snapshot."""
        if isinstance(self._checkpoint, GgufCheckpoint):
            return "gguf " + self._checkpoint.header_digest()
        folder = self._folder or cached_folder(self._checkpoint.source, self._checkpoint.revision)
        hashed = hashlib.blake2b(digest_size=16)
        for file in _source_files(folder) if folder is not None else ():
            content = file.read_bytes()
            hashed.update(f"{file.name}\0{len(content)}\0".encode() + content)
        return "files " + hashed.hexdigest()


def _source_files(folder: Path) -> Iterator[Path]:
    """Small files beside the weights, in an order of their own; further chat templates have a folder of theirs."""
    for place in (folder, folder / "additional_chat_templates"):
        yield from (file for file in sorted(place.glob("*")) if file.suffix in SOURCE_SUFFIXES and file.is_file())
