"""Fields of configurations from strangers: what is read, and what is refused by name."""

from __future__ import annotations

import math

import pytest

from shoal.errors import CheckpointError, UnsupportedModel
from shoal.model.families import fields
from shoal.model.nn.rope import RopeConfig


def test_integers() -> None:
    """Within bounds; null is as if it were not there; true is no number."""
    assert fields.integer({"n": 3}, "n") == 3
    assert fields.integer({"n": None}, "n", 5) == 5
    assert fields.integer({"n": 0}, "n", least=0) == 0
    for wrong in (0, -1, 1 << 21, 3.0, "3", True, [3]):
        with pytest.raises(CheckpointError, match="n is"):
            fields.integer({"n": wrong}, "n")
    with pytest.raises(CheckpointError, match="n is None, not an integer from 1 to 7"):
        fields.integer({}, "n", most=7)


def test_numbers() -> None:
    """Positive and finite; zero is off where that may be."""
    assert fields.number({"x": 2}, "x", 1.0) == 2.0
    assert fields.optional_number({"x": 0}, "x") == fields.optional_number({}, "x") == 0.0
    for wrong in (0, -1.0, math.nan, math.inf, "1", True):
        with pytest.raises(CheckpointError, match="x is"):
            fields.number({"x": wrong}, "x", 1.0)


def test_flags_and_options() -> None:
    """Truth values alone; options that change what is computed are refused, not ignored."""
    assert fields.flag({"on": None}, "on", True)
    with pytest.raises(CheckpointError, match="on is 1"):
        fields.flag({"on": 1}, "on")
    fields.refuse({"mode": "plain"}, "mode", "plain")
    with pytest.raises(UnsupportedModel, match="mode = 'new'"):
        fields.refuse({"mode": "new"}, "mode", "plain")


@pytest.mark.parametrize(
    ("given", "ids"), [(2, (2,)), ([2, 7], (2, 7)), (None, ()), (True, ()), ([2, -1, "3", True], (2,))]
)
def test_token_ids(given: object, ids: tuple[int, ...]) -> None:
    """One or several; what cannot be an id is left out."""
    assert fields.token_ids(given) == ids


def test_yarn_grows_cosines_by_the_factors_logarithm() -> None:
    """Or by what is given, or by the ratio of DeepSeek's two numbers."""
    yarn = {"rope_type": "yarn", "factor": 4.0}
    grown = 0.1 * math.log(4) + 1
    assert fields.rope({"rope_scaling": yarn}, 8).attention_factor == pytest.approx(grown)
    assert fields.rope({"rope_scaling": {**yarn, "attention_factor": 2.0}}, 8).attention_factor == 2.0
    both = {**yarn, "mscale": 1.0, "mscale_all_dim": 1.0}
    assert fields.rope({"rope_scaling": both}, 8).attention_factor == 1.0


def test_dynamic_scaling_begins_at_the_trained_positions() -> None:
    """Which are the model's, whatever else the file says."""
    config = {"max_position_embeddings": 100, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert fields.rope(config, 8) == RopeConfig(kind="dynamic", factor=2.0, original_max_positions=100)


def test_longrope_by_its_first_name() -> None:
    """Its factors are one for each pair, and cosines grow with the stretch."""
    config = {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 1024,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    }
    found = fields.rope(config, 8)
    assert (found.kind, found.factors, found.long_factors) == ("longrope", (1.0,) * 4, (2.0,) * 4)
    assert found.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(1024)))
