"""A model that is quantized, and how far two distributions are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.errors import ModelNotFound
from shoal.quantize.source_model import BATCH_TOKENS, SourceModel, batch_rows, divergences, embedded
from tests.support.quantized_models import small_llama


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    """And a head of its own is not."""
    tied = SourceModel.open(str(small_llama(tmp_path / "tied")))
    assert torch.equal(tied.head_weight(), tied.checkpoint.read("model.embed_tokens.weight"))
    own = SourceModel.open(str(small_llama(tmp_path / "own", tie_word_embeddings=False)))
    assert torch.equal(own.head_weight(), own.checkpoint.read("lm_head.weight"))
    assert own.fingerprint != tied.fingerprint


def test_layers_whose_inputs_do_not_fit_stay_out(tmp_path: Path) -> None:
    """The format takes multiples of 32."""
    model = SourceModel.open(str(small_llama(tmp_path, intermediate_size=100)))
    assert len(model.layers[0]) == 7
    assert len(model.quantizable) == 6 * 3
    assert not any("down" in layer.role for layer in model.quantizable)


def test_rows_are_embedded_in_batches(tmp_path: Path) -> None:
    """As many tokens at once as there is room for."""
    model = SourceModel.open(str(small_llama(tmp_path)))
    tokens = np.arange(5 * 600, dtype=np.int32).reshape(5, 600) % 258
    found = list(embedded(model.ends(), tokens))
    assert [len(one) for one in found] == [3, 2] == [batch_rows(600), 5 - batch_rows(600)]
    assert torch.equal(torch.cat(found)[4, 7], model.ends().embed([int(tokens[4, 7])])[0])
    assert batch_rows(10 * BATCH_TOKENS) == 1


def test_divergence_is_that_of_the_definition() -> None:
    """Σ p (log p − log q); none from itself."""
    one, other = (torch.log_softmax(torch.randn(3, 9), -1) for _ in range(2))
    expected = torch.nn.functional.kl_div(other, one, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(divergences(one, other), expected, atol=1e-6)
    assert not divergences(one, one).any()


def test_no_model_is_named(tmp_path: Path) -> None:
    """As by every command."""
    with pytest.raises(ModelNotFound):
        SourceModel.open(str(tmp_path / "nothing"))
