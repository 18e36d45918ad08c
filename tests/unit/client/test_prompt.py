"""Prompts and hidden states in the forms in which people have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shoal.client.chat_session import first_messages
from shoal.client.prompt import prompt_tokens, rows_tensor, said_text
from shoal.errors import UsageError

TOKENIZER: Any = SimpleNamespace(encode=lambda text: [len(text)], chat_template=lambda: "")
IDS = [3, 1, 2]
VOCABULARY = 100


@pytest.mark.parametrize(
    "prompt",
    [
        IDS,
        tuple(IDS),
        [IDS],
        np.array(IDS),
        np.array([IDS]),
        [np.int64(one) for one in IDS],
        torch.tensor(IDS),
        torch.tensor([IDS]),
        (one for one in IDS),
    ],
)
def test_token_ids_in_any_form(prompt: Any) -> None:
    """Lists, arrays and tensors, in a batch of one too."""
    assert prompt_tokens(TOKENIZER, prompt, raw=True, vocab_size=VOCABULARY) == IDS


def test_a_text() -> None:
    """As it is; the chat template, which takes its time, is for later."""
    assert prompt_tokens(TOKENIZER, "abc", raw=True, vocab_size=VOCABULARY) == [3]
    assert prompt_tokens(TOKENIZER, "abc", raw=False, vocab_size=VOCABULARY) is None


@pytest.mark.parametrize(
    "prompt",
    [None, 3, b"abc", {"role": "user"}, [1.5], ["a"], [True], [None], [[1, 2], [3]], "\udcff", np.array([0.5])],
)
def test_what_is_no_prompt(prompt: Any) -> None:
    """The error says what one is."""
    with pytest.raises(UsageError, match="prompt"):
        prompt_tokens(TOKENIZER, prompt, raw=True, vocab_size=VOCABULARY)


def test_ids_have_no_template() -> None:
    """A text has."""
    with pytest.raises(UsageError, match="raw=True"):
        prompt_tokens(TOKENIZER, IDS, raw=False, vocab_size=VOCABULARY)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
def test_rows_of_any_numbers(dtype: Any) -> None:
    """Become fp32."""
    rows = rows_tensor(np.ones((2, 3), dtype))
    assert rows.dtype == torch.float32
    assert rows.shape == (2, 3)
    given = torch.ones(2, 3)
    assert rows_tensor(given) is given
    assert rows_tensor([[1, 2]]).shape == (1, 2)


@pytest.mark.parametrize(
    "given", [None, "rows", [[1, 2], [3]], object(), np.array(["a"]), torch.ones(1, dtype=torch.complex64)]
)
def test_what_are_no_rows(given: Any) -> None:
    """The error says what they are."""
    with pytest.raises(UsageError, match="hidden states are"):
        rows_tensor(given)


def test_a_conversation_begins_with_messages() -> None:
    """Or with the system's words, not both."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert first_messages(None, said) == tuple(said)
    assert first_messages("be brief", ()) == ({"role": "system", "content": "be brief"},)
    for system, messages in (("x", said), (None, [{"role": "user"}]), (None, ["hello"]), (3, ())):
        with pytest.raises(UsageError):
            first_messages(system, messages)  # type: ignore[arg-type]  # what people pass
    with pytest.raises(UsageError, match="what is said is a text, not an int"):
        said_text(3)


@pytest.mark.parametrize("token", [-1, VOCABULARY, 10**30])
def test_ids_that_the_model_does_not_have(token: int) -> None:
    """They are told before anything is asked of the swarm."""
    with pytest.raises(UsageError, match=f"token id {token} is not in the model's vocabulary of {VOCABULARY}"):
        prompt_tokens(TOKENIZER, [1, token], raw=True, vocab_size=VOCABULARY)
