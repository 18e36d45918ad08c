"""What quantizing has cost, against transformers' own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.quantize.evaluation import compare, run_through
from shoal.quantize.source_model import SourceModel
from tests.support.quantized_models import small_llama
from tests.unit.quantize.test_measuring import some_tokens


@pytest.fixture
def models(tmp_path: Path) -> tuple[SourceModel, SourceModel]:
    """Two that differ."""
    torch.set_num_threads(1)
    one, other = small_llama(tmp_path / "one"), small_llama(tmp_path / "other", seed=1)
    return SourceModel.open(str(one)), SourceModel.open(str(other))


def logits(model: SourceModel) -> torch.Tensor:
    """transformers' log-probabilities of every next token."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model.checkpoint.source, dtype=torch.float32).eval()
    with torch.no_grad():
        found = reference(torch.from_numpy(some_tokens(3).astype("int64"))).logits[:, :-1]
    return torch.log_softmax(found, -1)


def test_the_numbers_are_those_of_the_definitions(models: tuple[SourceModel, SourceModel], tmp_path: Path) -> None:
    """Divergence, perplexities and the share of equal tokens; from itself a model does not differ."""
    tokens = some_tokens(3)
    states = [
        run_through(model.checkpoint, tokens, tmp_path, str(number), lambda *_: None, "reading")
        for number, model in enumerate(models)
    ]
    found = compare(models[0].checkpoint, models[1].checkpoint, (states[0], states[1]), tokens)
    one, other = map(logits, models)
    targets = torch.from_numpy(tokens[:, 1:].astype("int64"))[..., None]
    assert found.tokens == targets.numel()
    assert found.divergence == pytest.approx(float((one.exp() * (one - other)).sum(-1).mean()), rel=1e-4)
    assert found.original_perplexity == pytest.approx(float(one.gather(-1, targets).neg().mean().exp()), rel=1e-4)
    assert found.perplexity == pytest.approx(float(other.gather(-1, targets).neg().mean().exp()), rel=1e-4)
    assert found.same_top == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).float().mean()), abs=1e-6)
    itself = compare(models[0].checkpoint, models[0].checkpoint, (states[0], states[0]), tokens)
    assert (itself.divergence, itself.same_top) == (0.0, 1.0)


def test_a_run_that_was_ended_goes_on(models: tuple[SourceModel, SourceModel], tmp_path: Path) -> None:
    """From the block that it was at."""
    model, tokens = models[0], some_tokens(2)

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_through(model.checkpoint, tokens, tmp_path, "a", stop, "reading")
    seen: list[int] = []
    found = run_through(model.checkpoint, tokens, tmp_path, "a", lambda _, done, __: seen.append(done), "reading")
    whole = run_through(model.checkpoint, tokens, tmp_path, "b", lambda *_: None, "reading")
    assert seen == [2]
    assert found.path.read_bytes() == whole.path.read_bytes()
