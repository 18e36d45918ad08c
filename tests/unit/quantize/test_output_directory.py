"""The directory that comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.errors import CheckpointError
from shoal.model.weights.checkpoint import fingerprint
from shoal.model.weights.model_source import open_checkpoint
from shoal.quantize.output_directory import copy_other_files, publish, write_config, write_weights
from shoal.quantize.quantizing import Quantizing
from shoal.quantize.source_model import SourceModel
from tests.support.quantized_models import small_llama
from tests.unit.quantize.test_measuring import some_tokens
from tests.unit.quantize.test_quantizing import flat_plan


def made(folder: Path, most_bytes: int = 1 << 30) -> tuple[SourceModel, Path]:
    """A model with a head of its own, and its weights at 4 bits."""
    torch.set_num_threads(1)
    model = SourceModel.open(str(small_llama(folder / "model", tie_word_embeddings=False)))
    work, out = folder / "work", folder / "out"
    work.mkdir()
    out.mkdir()
    quantizing = Quantizing(model, some_tokens(2), work, lambda *_: None)
    quantizing.run(flat_plan(model, 4), 6, "rounding")
    write_weights(model, [*map(quantizing.block_file, range(3)), quantizing.head_file], out, most_bytes)
    write_config(model, out, {"quant_method": "exl2", "bits": 4.0})
    return model, out


def test_shards_hold_the_model_in_its_order(tmp_path: Path) -> None:
    """Embedding first, head last; what the directory reads is what one file reads; no index."""
    _, out = made(tmp_path, 40_000)
    names = sorted(path.name for path in out.glob("*"))
    assert len(names) > 3
    assert names[1:] == [f"output-{number:05}-of-{len(names) - 1:05}.safetensors" for number in range(1, len(names))]
    assert "model.embed_tokens.weight" in load_file(out / names[1])
    assert "lm_head.q_weight" in load_file(out / names[-1])
    assert all((out / name).stat().st_size < 60_000 for name in names[1:])
    open_checkpoint(str(out))


def test_no_head_lies_there_twice(tmp_path: Path) -> None:
    """The quantized one alone, and every other tensor in fp16 with its number."""
    model, out = made(tmp_path)
    tensors = load_file(out / "output.safetensors")
    assert "lm_head.weight" not in tensors
    norm = model.checkpoint.read("model.norm.weight")
    assert torch.equal(tensors["model.norm.weight"], norm.half())
    assert fingerprint(open_checkpoint(str(out))) != model.fingerprint


def test_numbers_beyond_fp16_are_named(tmp_path: Path) -> None:
    """They would be endless in the file."""
    model, out = made(tmp_path)
    path = Path(model.checkpoint.source) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        write_weights(SourceModel.open(model.checkpoint.source), [], out)


def test_what_lies_beside_the_weights_is_copied(tmp_path: Path) -> None:
    """But no weights and no index of some, which would be stale."""
    model, out = made(tmp_path)
    source = Path(model.checkpoint.source)
    (source / "model.safetensors.index.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"x")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    config = (out / "config.json").read_bytes()
    copy_other_files(model.checkpoint, out)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (out / "additional_chat_templates" / "tools.jinja").exists()
    assert (out / "tokenizer.json").exists()
    assert not (out / "model.safetensors.index.json").exists()
    assert not (out / "pytorch_model.bin").exists()
    assert (out / "config.json").read_bytes() == config
    assert json.loads(config)["quantization_config"] == {"quant_method": "exl2", "bits": 4.0}


def test_a_directory_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """Files can be read as new files can."""
    made_at, wanted = tmp_path / "made", tmp_path / "wanted"
    made_at.mkdir()
    (made_at / "a").write_text("x")
    (made_at / "a").chmod(0o600)
    publish(made_at, wanted)
    assert (wanted / "a").read_text() == "x"
    assert (wanted / "a").stat().st_mode & 0o600 == 0o600
    assert not made_at.exists()
