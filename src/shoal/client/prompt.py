"""What callers give a model, as the model takes it: prompts as token ids, hidden states as tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch

from shoal.errors import UsageError
from shoal.model.weights.tokenizer import Tokenizer
from shoal.options import check_text

PROMPT_FORM = "a prompt is a text, or with raw=True a sequence of token ids"


def prompt_tokens(tokenizer: Tokenizer, prompt: Any, raw: bool, vocab_size: int) -> list[int] | None:
    """Token ids of a text, or of ids: a sequence, an array [n] or [1, n] or a tensor.

    None for a text (without `raw`) that goes into the chat template, which takes its time: see `RemoteModel.encode_chat`.
    Raises UsageError for anything else, for ids that the model does not have, and where it has no chat template.
    """
    if isinstance(prompt, str):
        check_text("the prompt", prompt)
        if raw:
            return tokenizer.encode(prompt)
        tokenizer.chat_template()
        return None
    token_ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(token_ids, bytes | bytearray | dict) or not isinstance(token_ids, Iterable):
        raise UsageError(f"{PROMPT_FORM}, not {kind_of(prompt)}")
    token_ids = list(token_ids)
    if len(token_ids) == 1 and isinstance(token_ids[0], list | tuple):
        token_ids = list(token_ids[0])
    if not raw or any(isinstance(token, bool | str) for token in token_ids):
        raise UsageError(f"{PROMPT_FORM}; a conversation is begun with chat(messages=…)")
    try:
        ids = [operator.index(token) for token in token_ids]
    except TypeError as error:
        raise UsageError(f"{PROMPT_FORM}, not {kind_of(prompt)} of other things") from error
    if unknown := [token for token in ids if not 0 <= token < vocab_size]:
        raise UsageError(f"token id {unknown[0]} is not in the model's vocabulary of {vocab_size}")
    return ids


def said_text(text: Any) -> str:
    """What is said in a conversation; raises UsageError for what is no text."""
    if not isinstance(text, str):
        raise UsageError(f"what is said is a text, not {kind_of(text)}")
    check_text("the text", text)
    return text


def rows_tensor(hidden_states: Any) -> torch.Tensor:
    """Hidden states in fp32, from a tensor, an array or nested lists; raises UsageError for what holds no numbers."""
    if isinstance(hidden_states, torch.Tensor) and hidden_states.dtype == torch.float32:
        return hidden_states
    try:
        given = torch.as_tensor(hidden_states)
        if given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"{given.dtype} are no hidden states")
        return given.to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"hidden states are a tensor or an array of numbers, not {kind_of(hidden_states)}") from error


def kind_of(given: Any) -> str:
    """What was given, for an error: `an int`, `a dict`, `None`."""
    name = type(given).__name__
    return "None" if given is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
