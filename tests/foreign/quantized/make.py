"""Writes the files beside it: a tiny Llama, and what AutoRound 0.16.1 makes of it in three formats (round to nearest).

Its environment, apart from Shoal's: `pip install torch auto-round==0.16.1 compressed-tensors==0.20.1`; transformers 5.24.0.
Run it as `HF_HUB_OFFLINE=1 python make.py` in an empty folder and take over `model.safetensors` and `config.json`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from auto_round import AutoRound
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {"vocab_size": 131, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16}
HEADS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
FORMATS = {"gptq": ("auto_gptq", False), "awq": ("auto_awq", False), "compressed-tensors": ("llm_compressor", True)}
"""AutoRound's name, and whether groups are symmetric."""

model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).to(torch.float16)
generator = torch.Generator().manual_seed(5)
with torch.no_grad():
    for name, weight in model.named_parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15 + (1.0 if "norm" in name else 0.0))
model.save_pretrained("source")
tokenizer = Tokenizer(models.BPE(vocab={chr(code + 32): code for code in range(131)}, merges=[]))
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained("source")
for method, (name, symmetric) in FORMATS.items():
    rounding = AutoRound("source", scheme="W4A16", group_size=32, sym=symmetric, iters=0, disable_opt_rtn=True)
    rounding.quantize_and_save("made", format=name)
    shutil.move(next(Path("made").iterdir()), method)
