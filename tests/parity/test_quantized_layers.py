"""Checkpoints whose layers are quantized one by one: their blocks are those of the same numbers in floats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.errors import CheckpointError, ShoalError, UnsupportedModel
from shoal.model.families import model_config
from shoal.model.weights.block_loading import block_digests, load_blocks, load_ends
from shoal.model.weights.model_source import open_checkpoint
from shoal.types import Span
from tests.support.certify import Loaded, load, logits
from tests.support.exl3_files import exl3_layer
from tests.support.quantized_files import Layer, awq_layer, compressed_layer, exl2_layer, gptq_layer
from tests.support.tiny_models import tiny_llama

VOCAB = 131
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
GROUP = 32
FOREIGN = Path(__file__).parents[1] / "foreign" / "quantized"
SCHEME = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}

Make = Callable[[np.random.Generator, str, int, int], Layer]


def an_exl2_layer(rng: np.random.Generator, key: str, inputs: int, outputs: int) -> Layer:
    """Two widths; outputs filled up to a multiple of 32."""
    return exl2_layer(rng, key, [(5, 32), (3, inputs - 32)], -(-outputs // 32) * 32)


def an_exl3_layer(rng: np.random.Generator, key: str, inputs: int, outputs: int) -> Layer:
    """Bits from layer to layer others; inputs and outputs filled up to 128."""
    return exl3_layer(rng, key, int(rng.integers(1, 9)), inputs, outputs)


METHODS: dict[str, tuple[dict[str, Any], Make]] = {
    "exl2": ({"quant_method": "exl2", "bits": 3.5, "head_bits": 6, "version": "0.3.2"}, an_exl2_layer),
    "exl3": ({"quant_method": "exl3", "bits": 3.5, "head_bits": 6, "codebook": "mul1"}, an_exl3_layer),
    "exl3, older": (
        {"quant_method": "exl3", "version": "0.0.1", "bits": 2.0, "head_bits": 6},
        lambda rng, key, inputs, outputs: exl3_layer(rng, key, 2, inputs, outputs, "3inst", older=True),
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False},
        lambda rng, key, inputs, outputs: gptq_layer(rng, key, 4, GROUP, inputs, outputs, ordered=False),
    ),
    "gptq v2": (
        {"quant_method": "gptq", "bits": 3, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
        lambda rng, key, inputs, outputs: gptq_layer(rng, key, 3, GROUP, inputs, outputs, ordered=True, offset=0),
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
        lambda rng, key, inputs, outputs: awq_layer(rng, key, GROUP, inputs, outputs),
    ),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": SCHEME, "targets": ["Linear"]}},
            "ignore": ["lm_head"],
        },
        lambda rng, key, inputs, outputs: compressed_layer(rng, key, 4, GROUP, inputs, outputs, False, True),
    ),
}


class Pair:
    """A checkpoint with quantized layers, and one with the same numbers in fp16."""

    def __init__(self, folder: Path, method: str, tied: bool) -> None:
        self.packed, self.plain = folder / "packed", folder / "plain"
        tiny_llama(self.plain, tie_word_embeddings=tied, **SIZES)
        given, make = METHODS[method]
        config = json.loads((self.plain / "config.json").read_text())
        tensors = {name: one.to(torch.float16) for name, one in load_file(self.plain / "model.safetensors").items()}
        packed, rng = dict(tensors), np.random.default_rng(7)
        layers = [name for name in tensors if name.endswith("proj.weight")]
        if given["quant_method"] in ("exl2", "exl3"):
            tensors["lm_head.weight"] = torch.empty(VOCAB, SIZES["hidden_size"])
            layers.append("lm_head.weight")
            config["tie_word_embeddings"] = False
        for name in layers:
            outputs, inputs = tensors[name].shape
            layer = make(rng, name.removesuffix(".weight"), inputs, outputs)
            packed.pop(name, None)
            packed.update({part: torch.from_numpy(np.ascontiguousarray(one)) for part, one in layer.tensors.items()})
            tensors[name] = torch.from_numpy(np.ascontiguousarray(layer.weights.T[:outputs]))
        self.packed.mkdir()
        self.write(self.plain, tensors, config)
        self.write(self.packed, packed, {**config, "tie_word_embeddings": tied, "quantization_config": given})

    @staticmethod
    def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        """The files of a checkpoint anew."""
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=METHODS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """One of each method."""
    return Pair(tmp_path, request.param, tied=True)


def loaded_like(plain: Loaded, packed: Path) -> Loaded:
    """A checkpoint of the same sizes, which transformers does not have to know."""
    checkpoint = open_checkpoint(str(packed))
    config = model_config(checkpoint.config)
    blocks, ends = load_blocks(checkpoint, config, Span(0, 3)), load_ends(checkpoint, config)
    return plain._replace(config=config, blocks=blocks, ends=ends)


def test_blocks_and_ends_are_those_of_the_numbers(pair: Pair) -> None:
    """Digests are equal, and logits are, the head's too, which in EXL2 and EXL3 is tied in the configuration only."""
    plain, packed = load(pair.plain), loaded_like(load(pair.plain), pair.packed)
    assert block_digests(packed.blocks) == block_digests(plain.blocks)
    assert torch.equal(logits(packed), logits(plain))
    assert packed.config.tied_head == plain.config.tied_head


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_files_of_another_program(method: str) -> None:
    """What AutoRound made of a tiny Llama by rounding to nearest: each weight is less than a step from its source's."""
    source = open_checkpoint(str(FOREIGN / "source"))
    checkpoint = open_checkpoint(str(FOREIGN / method))
    assert checkpoint.tensors.keys() == source.tensors.keys()
    names = [name for name in source.tensors if name.endswith("proj.weight")]
    assert len(names) == 7
    for name in names:
        weights, expected = checkpoint.read(name).float(), source.read(name).float()
        grouped = expected.view(expected.shape[0], -1, GROUP)
        steps = (grouped.amax(2) - grouped.amin(2)).clamp_min(2 * grouped.abs().amax(2)) / 15
        error = (weights - expected).abs().view(grouped.shape).amax(2)
        assert bool((error <= 1.01 * steps).all())
        assert float((weights - expected).abs().mean() / expected.abs().mean()) < 0.12
    load_blocks(checkpoint, model_config(checkpoint.config), Span(0, 1))


def test_a_block_costs_its_packed_bytes(pair: Pair) -> None:
    """Only a block's own tensors are read, each once, as they are stored."""
    checkpoint = open_checkpoint(str(pair.packed))
    config, before = model_config(checkpoint.config), checkpoint.bytes_read
    load_blocks(checkpoint, config, Span(1, 2))
    stored = [one for name, one in load_file(pair.packed / "model.safetensors").items() if ".layers.1." in name]
    assert checkpoint.bytes_read - before == sum(one.nbytes for one in stored)


def test_damaged_layers_are_named(pair: Pair) -> None:
    """Each part of a layer cut in half, or left out: our own error, with the layer's name."""
    tensors = load_file(pair.packed / "model.safetensors")
    config = json.loads((pair.packed / "config.json").read_text())
    key = "model.layers.1.mlp.up_proj"
    flags = (".mul1",)  # one number, without which the layer is another one
    for part in [name for name in tensors if name.startswith(key) and not name.endswith(flags)]:
        for damaged in (tensors[part][: len(tensors[part]) // 2].clone(), None):
            if damaged is None and part.endswith((".g_idx",)):
                continue  # it may be left out
            others = {name: one for name, one in tensors.items() if name != part}
            pair.write(pair.packed, others if damaged is None else {**others, part: damaged}, config)
            with pytest.raises(ShoalError, match=key):
                checkpoint = open_checkpoint(str(pair.packed))
                load_blocks(checkpoint, model_config(checkpoint.config), Span(1, 2))


def test_a_layer_larger_than_its_floats_is_not_read(pair: Pair) -> None:
    """A header may claim any size for a part of a layer: it is refused when the file is opened, whichever part it is."""
    tensors = load_file(pair.packed / "model.safetensors")
    config = json.loads((pair.packed / "config.json").read_text())
    key = "model.layers.1.mlp.up_proj"
    for part in [name for name in tensors if name.startswith(key)]:
        large = torch.zeros(1 << 20, dtype=tensors[part].dtype)
        pair.write(pair.packed, {**tensors, part: large}, config)
        with pytest.raises(CheckpointError, match=f"{key} takes .* bytes, more than its floats would"):
            open_checkpoint(str(pair.packed))


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("gptq", {"bits": 7}, "7 bits"),
        ("gptq", {"dynamic": {"-:.*": {}}}, "dynamic"),
        ("awq", {"version": "gemv"}, "gemv"),
        ("compressed-tensors", {"format": "float-quantized"}, "float-quantized"),
        ("gptq", {"quant_method": "bitsandbytes"}, "bitsandbytes"),
    ],
)
def test_variants_that_are_not_read(tmp_path: Path, method: str, change: dict[str, Any], said: str) -> None:
    """Named, before anything is read."""
    pair = Pair(tmp_path, method, tied=True)
    config = json.loads((pair.packed / "config.json").read_text())
    config["quantization_config"] |= change
    (pair.packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=said):
        open_checkpoint(str(pair.packed))


def test_exl2_lies_in_files_of_its_own_names(tmp_path: Path) -> None:
    """`output…safetensors`, in parts too; an index that was copied from the source names files that are not there."""
    pair = Pair(tmp_path, "exl2", tied=False)
    plain = load(pair.plain)
    expected = logits(plain)
    (pair.packed / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00009.safetensors"}})
    )
    tensors = load_file(pair.packed / "model.safetensors")
    (pair.packed / "model.safetensors").rename(pair.packed / "output.safetensors")
    assert torch.equal(logits(loaded_like(plain, pair.packed)), expected)
    (pair.packed / "output.safetensors").unlink()
    names = sorted(tensors)
    for number, some in enumerate((names[:20], names[20:]), 1):
        part = {name: tensors[name] for name in some}
        save_file(part, pair.packed / f"output-0000{number}-of-00002.safetensors")
    assert torch.equal(logits(loaded_like(plain, pair.packed)), expected)
    (pair.packed / "output-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="half a download"):
        open_checkpoint(str(pair.packed))
