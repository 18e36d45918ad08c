"""The real model through three servers equals transformers, token for token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from shoal.errors import ModelNotFound
from shoal.model.weights.model_source import demo_model_path
from shoal.types import Span
from tests.parity.swarm import NEAR_TIE, greedy, swarm

pytestmark = pytest.mark.timeout(300)

TOKENS = 48
PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a village by the sea,"]
QUESTION = "Name three fish and one thing that each of them eats."


def expected(reference: Any, prompt_ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """transformers' greedy tokens, and the logits that they were chosen from."""
    prompt = torch.tensor([prompt_ids])
    found = reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=TOKENS,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return found.sequences[0, len(prompt_ids) :].tolist(), torch.cat(found.logits)


async def test_greedy_equals_transformers_and_itself() -> None:
    """Plain prompts and a chat: transformers' tokens (up to a near-tie of its own), however the model is divided."""
    from transformers import AutoModelForCausalLM

    try:
        path = demo_model_path()
    except ModelNotFound:
        pytest.skip("the demo's model is not installed")
    reference = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
    reference.generation_config.eos_token_id = None  # an end token is a token like any other here
    async with swarm(str(path), Span(0, 10), Span(10, 20), Span(20, 30)) as model:
        chat = model.tokenizer.encode_chat([{"role": "user", "content": QUESTION}])
        prompts = [*(model.tokenizer.encode(prompt) for prompt in PROMPTS), chat]
        replies = [await greedy(model, prompt, TOKENS) for prompt in prompts]
        # All at once and in other chunks: the same tokens.
        again = await asyncio.gather(*(greedy(model, prompt, TOKENS, chunk=5) for prompt in prompts))
    assert again == replies
    async with swarm(str(path), Span(0, 30)) as model:
        assert await greedy(model, prompts[-1], TOKENS) == replies[-1]
    for prompt, reply in zip(prompts, replies, strict=True):
        tokens, logits = expected(reference, prompt)
        differing = [index for index in range(TOKENS) if tokens[index] != reply[index]]
        if differing:
            best = logits[differing[0]].topk(2).values
            assert best[0] - best[1] < NEAR_TIE, (
                f"differs at {differing[0]}, where the reference is sure by {best[0] - best[1]}"
            )
