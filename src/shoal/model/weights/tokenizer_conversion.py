"""Tokenizers by transformers, turned into data. Importing transformers takes a second, so that happens here alone.

transformers loads its modules when their names are first used and does not bear that in two threads at once: every use
here is under one lock.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from shoal.model.weights.tokenizer_cache import TokenizerData

_TRANSFORMERS = threading.Lock()


def convert(where: str, **options: Any) -> TokenizerData:
    """The tokenizer that `AutoTokenizer.from_pretrained` makes, as data; raises whatever transformers stumbles over.

    Code that a repository brings along is never run, nor is the user asked to.
    """
    with _TRANSFORMERS:
        from transformers import AutoTokenizer

        return _data(AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options))


def _data(tokenizer: Any) -> TokenizerData:
    if not tokenizer.is_fast:
        from transformers.convert_slow_tokenizer import convert_slow_tokenizer

        backend = convert_slow_tokenizer(tokenizer)
    else:
        backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    templates = tokenizer.chat_template or {}
    return TokenizerData(
        msgspec.Raw(backend.to_str().encode()),
        {"default": templates} if isinstance(templates, str) else dict(templates),
        dict(tokenizer.special_tokens_map),
        tokenizer.eos_token_id,
        bool(tokenizer.split_special_tokens),
    )
