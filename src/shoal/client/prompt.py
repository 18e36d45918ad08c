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


def prompt_tokens(tokenizer: Tokenizer, prompt: Any, raw: bool) -> list[int] | None:
    """Token ids of a text, or of ids: a sequence, an array [n] or [1, n] or a tensor.

    None for a text (without `raw`) that goes into the chat template, which takes its time: see `RemoteModel.encode_chat`.
    Raises UsageError for anything else.
    """
    if isinstance(prompt, str):
        check_text("the prompt", prompt)
        return tokenizer.encode(prompt) if raw else None
    token_ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(token_ids, bytes | bytearray | dict) or not isinstance(token_ids, Iterable):
        raise UsageError(f"{PROMPT_FORM}, not {_kind(prompt)}")
    token_ids = list(token_ids)
    if len(token_ids) == 1 and isinstance(token_ids[0], list | tuple):
        token_ids = list(token_ids[0])
    if not raw or any(isinstance(token, bool | str) for token in token_ids):
        raise UsageError(f"{PROMPT_FORM}; a conversation is begun with chat(messages=…)")
    try:
        return [operator.index(token) for token in token_ids]
    except TypeError as error:
        raise UsageError(f"{PROMPT_FORM}, not {_kind(prompt)} of other things") from error


def said_text(text: Any) -> str:
    """What is said in a conversation; raises UsageError for what is no text."""
    if not isinstance(text, str):
        raise UsageError(f"what is said is a text, not {_kind(text)}")
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
        raise UsageError(f"hidden states are a tensor or an array of numbers, not {_kind(hidden_states)}") from error


def _kind(given: Any) -> str:
    return f"a {type(given).__name__}" if given is not None else "None"
