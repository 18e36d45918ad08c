"""Gemma-3-270m, Q4_K_M: a real file through three servers, beyond its sliding window, equals transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from shoal.errors import ModelNotFound
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.gguf_file import GgufFile
from shoal.types import Span
from tests.parity.swarm import NEAR_TIE, greedy, swarm
from tests.support.gemma import assemble

pytestmark = pytest.mark.timeout(600)

TEXT = Path("docs/architecture.md").read_text()
WINDOW, BLOCKS, TOKENS = 512, 18, 40
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, where its packages are installed."""
    try:
        return assemble(tmp_path_factory.mktemp("gemma"))
    except ModelNotFound as error:
        pytest.skip(str(error))


def reference(path: Path) -> Gemma3ForCausalLM:
    """transformers' model of the same dequantized tensors. Its own reading of the file is right too, but takes a minute."""
    file = GgufFile(LocalFile(path))
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=WINDOW,
        attn_implementation="eager",
    )
    stored = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for index in range(BLOCKS):
        names = {f"model.layers.{index}.{ours}.weight": f"blk.{index}.{held}.weight" for held, ours in NAMES.items()}
        stored.update(names)
    weights = {name: file.read(held) - float("norm" in name) for name, held in stored.items()}
    model = Gemma3ForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.to(torch.float32).eval()


async def test_greedy_beyond_the_window_equals_transformers(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through three servers, in chunks, from a prompt longer than the window."""
    thirds = (Span(0, 6), Span(6, 12), Span(12, 18))
    async with swarm(str(path), *thirds, max_session_tokens=1024) as model:
        ids = model.tokenizer.encode(TEXT)[: WINDOW + 60]
        assert len(ids) == WINDOW + 60
        reply = await greedy(model, ids, TOKENS)
    theirs = reference(path)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids + reply])).logits[0, len(ids) - 1 : -1]
    best = logits.topk(2).values
    ties = []
    for index, token in enumerate(reply):
        # After a near-tie of the reference the replies may part; each token is judged by what stands before it.
        behind = float(best[index, 0] - logits[index, token])
        assert behind < NEAR_TIE, f"token {index} is {behind} behind the reference's"
        ties += [f"token {index}: {behind:.1e}"] if behind > 0 else []
    with capsys.disabled():
        print(f"\nnear-ties decided the other way, of {len(reply)} tokens: {', '.join(ties) or 'none'}")
    assert len(set(reply)) > 5, "the reply says something"
