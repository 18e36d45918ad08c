"""Every family against transformers: each case of the table has each property. docs/families.md says what ran here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.families import PAGE, page, verdicts
from shoal.model.families import FAMILIES
from shoal.model.kernels import cpu
from shoal.model.weights.block_loading import load_blocks
from shoal.model.weights.model_source import open_checkpoint
from shoal.types import Span
from tests.support.certify import PROPERTIES, Loaded, Property, load, logits, prompt, reference_logits, required
from tests.support.family_cases import CASES, Case, save_checkpoint

MEASURED: dict[str, dict[str, float]] = {}
"""The worst number of each family's variants, as the tests below leave it."""

RAN: set[tuple[str, str, str]] = set()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The table is for one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.model_type}-{case.name}".replace(" ", "-"))
def certified(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Loaded]:
    """Every case, written and read as files."""
    case: Case = request.param
    return case, load(save_checkpoint(case, tmp_path_factory.mktemp("tiny")), case.granted)


@pytest.mark.parametrize("one", PROPERTIES, ids=lambda one: one.name)
def test_a_family_has_a_property(certified: tuple[Case, Loaded], one: Property) -> None:
    """A cell of the table: the number is below its limit, for codecs where the family offers them."""
    case, loaded = certified
    value = one.measure(loaded, case)
    RAN.add((case.model_type, case.name, one.name))
    if value is None:
        return
    worst = MEASURED.setdefault(case.model_type, {})
    worst[one.name] = max(value, worst.get(one.name, 0.0))
    if required(case, one.name):
        assert value <= one.limit


def test_every_family_is_in_the_table() -> None:
    """With one unnamed case at least, under a type that exists."""
    assert {case.model_type for case in CASES if not case.name} == set(FAMILIES)


def test_the_page_says_what_ran() -> None:
    """docs/families.md is what the tests above measured: all families, all properties, nothing else."""
    if len(RAN) < len(CASES) * len(PROPERTIES):
        pytest.skip("only a part of the table ran")
    if not cpu.available():
        pytest.skip("the compiled kernels are not built here")
    assert PAGE.read_text() == page(verdicts(MEASURED)), "run: python -m bench families --write docs/families.md"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "deepseek_v3"])
def test_smaller_dtypes_are_the_rounded_model(tmp_path: Path, dtype: str, model_type: str) -> None:
    """Weights stored in 16 bits compute what transformers computes in fp32 with the rounded weights; routers stay in fp32."""
    case = next(case for case in CASES if case.model_type == model_type)
    loaded = load(save_checkpoint(case, tmp_path), case.granted, dtype)
    checkpoint = open_checkpoint(str(tmp_path))
    blocks = load_blocks(checkpoint, loaded.config, Span(0, 1), dtype)
    assert {linear.weight.dtype for linear in blocks[0].linears()} <= {getattr(torch, dtype), torch.float32}
    assert blocks[0].output.weight.dtype == getattr(torch, dtype)
    with torch.no_grad():
        for name, weight in loaded.reference.named_parameters():
            if weight.ndim >= 2 and not name.endswith(".gate.weight"):
                weight.copy_(weight.to(getattr(torch, dtype)).to(torch.float32))
    expected = reference_logits(loaded, prompt(loaded.config.vocab_size))
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-4)
