"""Tiny random checkpoints, for tests and examples: real files, seeded weights, seconds to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def tiny_llama(directory: Path | str, *, seed: int = 0, scale: float = 0.15, **overrides: Any) -> Path:
    """Save a random Llama checkpoint (config.json, model.safetensors, fp32) and return its directory.

    `overrides` go to transformers' LlamaConfig. The weights are normal with deviation `scale`, biases and norms included, so
    that nothing is zero or one by chance of initialisation.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**{**TINY_LLAMA, **overrides})).to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, scale, generator=generator)
    model.save_pretrained(str(directory))
    return Path(directory)


def tiny_tokenizer(directory: Path | str, vocab_size: int = 131) -> Path:
    """Save a tokenizer of single bytes (`vocab_size` at most 258: two special tokens, then bytes) and return its directory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<s>", "</s>", *letters][:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<s>")
    fast.save_pretrained(str(directory))
    return Path(directory)
