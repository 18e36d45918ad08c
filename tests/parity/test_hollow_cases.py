"""A case that says too little is refused: each way of saying too little, and every field of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from shoal.model.nn.block import BlockConfig, ModelConfig
from shoal.model.nn.mla import LatentConfig
from shoal.model.nn.moe import MoeConfig
from shoal.model.nn.rope import KINDS, RopeConfig
from tests.support.certify import check_case, greedy_differences, load
from tests.support.family_cases import CASES, Case, save_checkpoint
from tests.support.hollow_cases import (
    APART,
    READ_BY_KIND,
    TABLES,
    UNCHANGED,
    HollowCase,
    changes,
    check_tokens,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As the table is measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of(model_type: str, name: str = "", **fields: Any) -> Case:
    """A case of the table with other fields."""
    case = next(case for case in CASES if (case.model_type, case.name) == (model_type, name))
    return case._replace(fields={**case.fields, **fields})


@pytest.mark.parametrize("kind", [ModelConfig, BlockConfig, RopeConfig, MoeConfig, LatentConfig])
def test_no_field_is_forgotten(kind: type[msgspec.Struct]) -> None:
    """Each field has other values that have to be seen, or the weights fix it, or no arithmetic reads it."""
    known = [set(TABLES[kind]), APART.get(kind, frozenset()), UNCHANGED.get(kind, frozenset())]
    assert sorted(name for names in known for name in names) == sorted(
        field.name for field in msgspec.structs.fields(kind)
    )


def test_every_rope_is_known() -> None:
    """What each kind reads; nothing that is not changed."""
    assert set(READ_BY_KIND) == set(KINDS)
    assert {name for names in READ_BY_KIND.values() for name in names} <= set(TABLES[RopeConfig])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model_type}-{case.name}".replace(" ", "-"))
def test_changes_are_changes(case: Case, tmp_path: Path) -> None:
    """No model is its own mutant, and none is made twice."""
    config = load(save_checkpoint(case, tmp_path), case.granted).config
    found = [change.config for change in changes(config, case.granted)]
    assert config not in found
    assert len({msgspec.msgpack.encode(one) for one in found}) == len(found)


def test_replies_that_say_too_little() -> None:
    """One token for ever, a few in turn, the input once more; what differs and is new is taken."""
    varied = [7 * index % 61 for index in range(128)]
    check_tokens([0] * 128, varied, "a reply")
    for given, tokens in (([0] * 128, [5] * 128), ([0] * 128, [1, 2, 3, 4] * 32), (varied, varied)):
        with pytest.raises(HollowCase, match="a reply"):
            check_tokens(given, tokens, "a reply")
    with pytest.raises(HollowCase, match="40 are 999"):
        check_tokens([0] * 128, [*varied[:88], *[999] * 40], "a reply")


@pytest.mark.parametrize(
    ("case", "silent"),
    [
        (of("llama", rms_norm_eps=1e-12), "norm_eps"),
        (of("mistral", "window", sliding_window=400), "window"),
        (of("gemma2", attn_logit_softcapping=1e6), "attn_softcap"),
        (of("gemma2", final_logit_softcapping=1e6), "final_softcap"),
        (
            of("llama", "llama 3 rope", rope_parameters={"rope_type": "linear", "factor": 1.0, "rope_theta": 1e4}),
            "rope",
        ),
        (of("deepseek_v3", n_group=2, topk_group=2), "groups"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_that_does_not_show(case: Case, silent: str, tmp_path: Path) -> None:
    """A number on which nothing depends certifies nothing; the refusal names it."""
    with pytest.raises(HollowCase, match=silent):
        check_case(load(save_checkpoint(case, tmp_path), case.granted))


def test_weights_that_do_not_show(tmp_path: Path) -> None:
    """Biases that are all alike could be in any order."""
    path = save_checkpoint(of("llama", "biases"), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {name: torch.full_like(one, 0.1) if "v_proj.bias" in name else one for name, one in tensors.items()}, path
    )
    with pytest.raises(HollowCase, match=r"block 2: another v\.bias moves logits by 0e\+00$"):
        check_case(load(tmp_path))


def test_a_model_that_repeats_itself(tmp_path: Path) -> None:
    """The reply of a model that always says the same certifies no decoding."""
    loaded = load(save_checkpoint(of("llama"), tmp_path))
    loaded.ends.head.weight.mul_(0.0)  # type: ignore[attr-defined]  # plain torch's
    with pytest.raises(HollowCase, match="the greedy reply: 128 tokens, of which 1 differ"):
        greedy_differences(loaded)
