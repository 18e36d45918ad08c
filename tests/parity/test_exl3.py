"""A checkpoint in EXL3, written by the format's description alone, is served and gives the tokens of its numbers in floats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from shoal.errors import CheckpointError, ModelNotFound
from shoal.model.families import model_config
from shoal.model.weights.block_loading import block_digests, load_blocks, load_ends
from shoal.model.weights.checkpoint import Checkpoint
from shoal.model.weights.model_source import open_checkpoint
from shoal.types import Span
from tests.parity.swarm import greedy, swarm
from tests.support.exl3_files import write_exl3
from tests.support.tiny_models import tiny_llama, tiny_tokenizer

NUM_BLOCKS = 2
VOCAB = 258
TOKENS = 24
INDEX = "model.safetensors.index.json"
PARTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
KEY = "model.layers.1.self_attn.q_proj"
BIAS = f"{KEY}.bias"


def bits_of(key: str) -> int:
    """From linear to linear others; six for the head."""
    return 6 if key == "lm_head" else 2 + len(key) % 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`exl3`, made of a random Llama with biases and a tied head, and `plain`, which has its numbers in fp16."""
    folder = tmp_path_factory.mktemp("exl3")
    source = tiny_llama(folder / "source", vocab_size=VOCAB, num_hidden_layers=NUM_BLOCKS, attention_bias=True)
    floats = write_exl3(source, folder / "exl3", bits_of)
    (folder / "plain").mkdir()
    save_file(floats, folder / "plain" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "plain" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    for name in ("exl3", "plain"):
        tiny_tokenizer(folder / name, vocab_size=VOCAB)
    return folder


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy of the EXL3 checkpoint."""
    return shutil.copytree(made / "exl3", tmp_path / "exl3")


def digests(folder: Path) -> tuple[str, ...]:
    """Of all blocks and of what the ends compute of a row."""
    checkpoint = open_checkpoint(str(folder))
    config = model_config(checkpoint.config)
    ends = load_ends(checkpoint, config)
    logits = ends.logits(ends.embed([5]), 1)
    blocks = load_blocks(checkpoint, config, Span(0, NUM_BLOCKS))
    return *block_digests(blocks), logits.numpy().tobytes().hex()


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    """The one file anew with some tensors others; None: without them."""
    tensors = load_file(folder / "model.safetensors") | change
    save_file({name: one for name, one in tensors.items() if one is not None}, folder / "model.safetensors")


def opened(folder: Path) -> Checkpoint:
    """The checkpoint, with the second block read."""
    checkpoint = open_checkpoint(str(folder))
    load_blocks(checkpoint, model_config(checkpoint.config), Span(1, 2))
    return checkpoint


async def test_a_served_checkpoint_gives_the_tokens_of_its_floats(made: Path) -> None:
    """Two servers; the same tokens as from the floats, and as transformers has of those."""
    from transformers import AutoModelForCausalLM

    prompt, replies = [3, 1, 4, 1, 5, 9, 2, 6], []
    for name in ("exl3", "plain"):
        async with swarm(str(made / name), Span(0, 1), Span(1, NUM_BLOCKS)) as served:
            replies.append(await greedy(served, prompt, TOKENS))
    assert replies[0] == replies[1]
    assert len(set(replies[0])) > TOKENS // 4
    reference = AutoModelForCausalLM.from_pretrained(str(made / "plain"), dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    found = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert found[0, len(prompt) :].tolist() == replies[0]


def test_the_numbers_are_near_those_of_the_source(made: Path) -> None:
    """As near as the bits allow: what is written is the model, not noise."""
    source, checkpoint = open_checkpoint(str(made / "source")), open_checkpoint(str(made / "exl3"))
    for name in [name for name in source.tensors if name.endswith("proj.weight")]:
        weights, expected = checkpoint.read(name).float(), source.read(name).float()
        error = float((weights - expected).square().sum() / expected.square().sum())
        assert error < 1.2 * 3.0 ** -bits_of(name.removesuffix(".weight"))


def test_files_in_one_and_in_parts(made: Path, model: Path) -> None:
    """An index is used that fits; one of the source's files changes nothing, nor does what its configuration named."""
    expected = digests(made / "plain")
    assert digests(model) == expected
    old = {"model.layers.0.mlp.up_proj.weight": "model.safetensors"}  # it is not there any more
    (model / INDEX).write_text(json.dumps({"weight_map": old}))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    assert digests(model) == expected
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    for part, some in zip(PARTS, (names[:30], names[30:]), strict=True):
        save_file({name: tensors[name] for name in some}, model / part)
    (model / "model.safetensors").unlink()
    assert digests(model) == expected
    of_nine = {"model.norm.weight": "model-00001-of-00009.safetensors"}
    (model / INDEX).write_text(json.dumps({"weight_map": of_nine}))
    assert digests(model) == expected
    fresh = {name: part for part, some in zip(PARTS, (names[:30], names[30:]), strict=True) for name in some}
    (model / INDEX).write_text(json.dumps({"weight_map": fresh}))
    save_file({"other": np.zeros(1)}, model / "consolidated-00001-of-00001.safetensors")
    assert digests(model) == expected


@pytest.mark.parametrize("index", [None, "fresh", "stale"])
def test_half_a_download_is_named(model: Path, index: str | None) -> None:
    """Whatever an index says."""
    (model / "model.safetensors").rename(model / PARTS[0])
    parts = {"fresh": PARTS, "stale": ["model-00001-of-00009.safetensors"]}
    if index is not None:
        (model / INDEX).write_text(json.dumps({"weight_map": {str(n): part for n, part in enumerate(parts[index])}}))
    with pytest.raises(CheckpointError, match=f"half a download.*{PARTS[1]}"):
        open_checkpoint(str(model))


def test_no_weights(model: Path) -> None:
    """Neither one file nor parts."""
    (model / "model.safetensors").rename(model / "adapter.safetensors")
    with pytest.raises(ModelNotFound, match="has no weights"):
        open_checkpoint(str(model))


def test_a_block_costs_its_packed_bytes(model: Path) -> None:
    """Only a block's own tensors are read, each once, as they are stored; opening reads headers alone."""
    checkpoint = open_checkpoint(str(model))
    before = checkpoint.bytes_read
    load_blocks(checkpoint, model_config(checkpoint.config), Span(1, 2))
    stored = [one for name, one in load_file(model / "model.safetensors").items() if ".layers.1." in name]
    assert checkpoint.bytes_read - before == sum(one.nbytes for one in stored)


def test_biases_may_be_filled_up_or_not(made: Path, model: Path) -> None:
    """To the outputs of the trellis; any other size is refused by name."""
    bias = load_file(model / "model.safetensors")[BIAS]
    assert bias.shape == (128,)
    rewrite(model, {BIAS: bias[:48]})
    assert digests(model) == digests(made / "plain")
    for size in (47, 64, 127):
        rewrite(model, {BIAS: bias[:size]})
        with pytest.raises(CheckpointError, match=BIAS):
            opened(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{KEY}.trellis": np.zeros((16, 8, 48), np.int16)}, "256 inputs, which are not 48"),
        ({f"{KEY}.trellis": np.zeros((8, 16, 48), np.int16)}, "256 outputs, which are not 48"),
        ({f"{KEY}.trellis": np.zeros((8, 8, 47), np.int16)}, "bits for a weight"),
        ({f"{KEY}.trellis": np.zeros((8, 8, 48), np.float16)}, "trellis is float16"),
        ({f"{KEY}.suh": None}, "neither"),
        ({f"{KEY}.svh": np.full(128, np.nan, np.float16)}, "not finite"),
        ({f"{KEY}.mcg": np.array(1, np.int32)}, "two codebooks"),
        ({f"{KEY}.trellis": None}, f"{KEY}.weight"),
    ],
)
def test_damaged_layers_are_named(model: Path, change: dict[str, Any], said: str) -> None:
    """With the checkpoint and the layer."""
    rewrite(model, change)
    with pytest.raises(CheckpointError, match=said) as refused:
        opened(model)
    assert KEY in str(refused.value)
    assert str(model) in str(refused.value)


def test_a_layer_that_the_model_does_not_have(model: Path) -> None:
    """It is another model's."""
    extra = {"model.layers.1.mlp.gate_up_proj.trellis": np.zeros((8, 8, 48), np.int16)}
    rewrite(model, extra)
    with pytest.raises(CheckpointError, match="gate_up_proj is quantized; the configuration has no such matrix"):
        open_checkpoint(str(model))
