"""What others make of the same checkpoint on the same machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Transformers:
    """transformers in fp32, in this process, with so many of torch's threads."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._threads = threads
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        ).eval()

    def decode(self, prompt_ids: Sequence[int], count: int) -> float:
        """Tokens per second after the first, greedy."""
        import torch

        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            out = self._model(torch.tensor([list(prompt_ids)]), use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            started_at = time.perf_counter()
            for _ in range(count - 1):
                out = self._model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
                token = out.logits[:, -1:].argmax(-1)
            return (count - 1) / (time.perf_counter() - started_at)

    def prefill_s(self, prompt_ids: Sequence[int]) -> float:
        """Seconds until the logits of the last token."""
        import torch

        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            started_at = time.perf_counter()
            self._model(torch.tensor([list(prompt_ids)]), use_cache=True, logits_to_keep=1)
            return time.perf_counter() - started_at


class LlamaCpp:
    """llama.cpp through llama-cpp-python, on the GGUF file as it is. Raises ImportError where that is not installed."""

    def __init__(self, path: Path, threads: int, context: int = 1024) -> None:
        from llama_cpp import Llama

        self._model: Any = Llama(
            str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False, logits_all=False
        )

    def decode(self, prompt_ids: Sequence[int], count: int) -> float:
        """Tokens per second after the first, greedy."""
        self._model.reset()
        tokens = self._model.generate(list(prompt_ids), temp=0.0, top_k=1, reset=True)
        next(tokens)
        started_at = time.perf_counter()
        for _ in range(count - 1):
            next(tokens)
        return (count - 1) / (time.perf_counter() - started_at)
