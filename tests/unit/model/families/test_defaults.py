"""What a configuration leaves out is what transformers takes: every field of every family, taken away one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ShoalError
from shoal.model.families import FAMILIES, model_config
from shoal.model.nn.block import ModelConfig
from shoal.model.weights import gguf
from shoal.model.weights.byte_source import LocalFile
from shoal.model.weights.gguf import GgufCheckpoint
from shoal.model.weights.gguf_file import GgufFile
from tests.support.family_cases import CASES, TINY, Case, save_checkpoint
from tests.support.gguf_files import write_gguf

Config = dict[str, Any]

DEFAULTS = [Case(model_type, "", {}) for model_type in FAMILIES]
TINIES = [*CASES, Case("deepseek_v2", "experts alone", {"num_experts_per_tok": 4})]


def whole(model_type: str, given: Config) -> Config | None:
    """Everything that transformers takes beside what is given; None where it refuses."""
    from transformers import AutoConfig

    try:
        made = AutoConfig.for_model(model_type, **copy.deepcopy(given))
        if getattr(made, "rope_parameters", None):
            made.standardize_rope_params()  # once more, as its rotary embeddings do
            made.validate_rope()
        fields: Config = made.to_dict()
    except Exception:  # whatever its validation raises
        return None
    return {**fields, "model_type": model_type}


def shape(config: Config) -> ModelConfig | str:
    """What is made of a configuration, or why nothing is."""
    try:
        return model_config(config)
    except ShoalError as error:
        return str(error)


def thinned(config: Config) -> Iterator[tuple[str, Config]]:
    """The configuration without each of its fields, and without each of its rope's."""
    for key in config.keys() - {"model_type"}:
        yield key, {other: value for other, value in config.items() if other != key}
        if isinstance(config[key], dict):
            for inner, less in thinned(config[key]):
                yield f"{key}.{inner}", {**config, key: less}


def older(config: Config) -> Iterator[Config]:
    """The same in the layouts that older files have."""
    yield config
    rope = config.get("rope_parameters")
    if rope and "full_attention" not in rope:
        rest = {key: value for key, value in config.items() if key != "rope_parameters"}
        scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
        moved = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        yield {**rest, **moved, "rope_scaling": scaling if scaling.get("rope_type") != "default" else None}
    if rope and "full_attention" in rope:
        rest = {key: value for key, value in config.items() if key != "rope_parameters"}
        full, local = rope["full_attention"], rope["sliding_attention"]
        scaling = {key: value for key, value in full.items() if key != "rope_theta"}
        yield {
            **rest,
            "rope_theta": full["rope_theta"],
            "rope_local_base_freq": local["rope_theta"],
            "rope_scaling": scaling if scaling.get("rope_type") != "default" else None,
        }


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.model_type)
def test_nothing_but_a_type_is_the_types_defaults(case: Case) -> None:
    """Files of older versions leave out every field that is at its class's default."""
    expected = whole(case.model_type, {})
    assert expected is not None
    assert shape({"model_type": case.model_type}) == shape(expected)
    assert (
        isinstance(shape(expected), ModelConfig) or case.model_type == "deepseek_v2"
    )  # how many experts, it does not say


@pytest.mark.parametrize(
    "case", [*DEFAULTS, *TINIES], ids=lambda case: f"{case.model_type}-{case.name}".replace(" ", "-")
)
def test_any_field_may_be_left_out(case: Case) -> None:
    """The model is the one that transformers makes of the rest; where that is none, or one that is refused, so it is here."""
    fields = {key: value for key, value in {**TINY, **case.fields}.items() if value is not None or key != "head_dim"}
    config = whole(case.model_type, {} if case in DEFAULTS else fields)
    assert config is not None
    compared = 0
    for layout in older(config):
        for key, left in thinned(layout):
            theirs = whole(case.model_type, {name: value for name, value in left.items() if name != "model_type"})
            ours = shape(left)
            if theirs is None or isinstance(shape(theirs), str):
                assert isinstance(ours, str) or theirs is None, (key, ours)
                continue
            assert ours == shape(theirs), (key, left)
            compared += 1
    assert compared > 20 or (case.model_type == "deepseek_v2" and case in DEFAULTS)


class Thinned:
    """A GGUF file without one of its fields."""

    def __init__(self, file: GgufFile, key: str = "") -> None:
        self._file = file
        self.metadata = {name: value for name, value in file.metadata.items() if name != key}

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


SAID: Config = {
    "gemma2": {"sliding_window": 4096},
    "phi3": {"sliding_window": None},
    "deepseek_v2": {"topk_method": "greedy", "n_group": 1, "topk_group": 1},
}
"""What a GGUF file that leaves it out means: llama.cpp and transformers agree on it."""

UNSAID = ("tokenizer.", "general.", ".vocab_size", "qwen3moe.feed_forward_length")
"""Fields that say nothing of the model's arithmetic, and one that no block of experts asks for."""


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.gguf and case.name != "yarn"],
    ids=lambda case: f"{case.model_type}-{case.name}".replace(" ", "-"),
)
def test_any_field_of_a_gguf_file_may_be_left_out(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is the same, or the file is refused when it is opened."""
    case = case._replace(fields={**case.fields, **SAID.get(case.model_type, {})})
    write_gguf(save_checkpoint(case, tmp_path / "model"), tmp_path / "model.gguf")
    source = LocalFile(tmp_path / "model.gguf")
    whole_file = GgufFile(source)
    expected, refused = GgufCheckpoint("model.gguf", source), []
    for key in [key for key in whole_file.metadata if not any(part in key for part in UNSAID)]:
        with monkeypatch.context() as patch:
            patch.setattr(gguf, "GgufFile", lambda _, key=key: Thinned(whole_file, key))
            try:
                found = GgufCheckpoint("model.gguf", source)
            except ShoalError as error:
                refused.append(str(error))
                continue
        if found.tensors.keys() != expected.tensors.keys() or len(found.tensors) < len(list(found._wanted())):
            continue  # loading it names the tensor that is missing
        assert model_config(found.config) == model_config(expected.config), key
    assert any("does not say" in text for text in refused)
