"""Real prose for benchmarks, the same wherever this Python runs: its language reference, which ships with the interpreter."""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Protocol

TOPICS = ("execmodel", "objects", "naming", "exceptions", "customization", "compound")


class Encodes(Protocol):
    """A tokenizer, as far as it is needed here."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...


def prompts(tokenizer: Encodes, count: int, num_tokens: int) -> list[list[int]]:
    """`count` passages of so many tokens each, one after the other; raises ValueError when the text is too short."""
    text = "\n\n".join(topics[topic] for topic in TOPICS)
    token_ids = tokenizer.encode(text)
    if len(token_ids) < count * num_tokens:
        raise ValueError(f"{count} passages of {num_tokens} tokens are more than the text's {len(token_ids)}")
    return [token_ids[first : first + num_tokens] for first in range(0, count * num_tokens, num_tokens)]
