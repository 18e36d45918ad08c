"""What may be asked of sampling; tests/unit/model/nn/test_sampling.py has what comes of it."""

from __future__ import annotations

import pytest

from shoal.errors import UsageError
from shoal.model.nn.sampling_params import MAX_PENALTY, MAX_SEED, MAX_TEMPERATURE, MIN_PENALTY, SamplingParams
from shoal.options import options_of


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("seed", -1),
        ("seed", 1 << 64),
        ("stop", ("", "x")),
        ("stop", ("END", 3)),
        ("ignore_eos", "no"),
    ],
)
def test_senseless_values_are_named(field: str, value: object) -> None:
    """The error says which field cannot be what."""
    with pytest.raises(UsageError, match=f"^{field} cannot be "):
        SamplingParams(**{field: value})  # type: ignore[arg-type]  # the mistake that is meant


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 1),
        ("temperature", MAX_TEMPERATURE),
        ("top_p", 1.0),
        ("min_p", 0.0),
        ("repetition_penalty", MIN_PENALTY),
        ("repetition_penalty", MAX_PENALTY),
        ("seed", MAX_SEED),
        ("stop", ("END", "\n")),
    ],
)
def test_the_last_value_that_makes_sense(field: str, value: object) -> None:
    """Bounds belong to what is allowed."""
    assert getattr(SamplingParams(**{field: value}), field) == value  # type: ignore[arg-type]  # as it is named


def test_a_caller_may_give_one_text_to_stop_at() -> None:
    """Or several, or none, where options are read from keywords."""
    for given, texts in (("END", ("END",)), (["a", "b"], ("a", "b")), (None, ())):
        assert SamplingParams.of({"stop": given}).stop == texts
    with pytest.raises(UsageError, match="stop"):
        SamplingParams.of({"stop": [""]})


def test_every_flag_has_a_help_text() -> None:
    """All but the one that programs alone may set."""
    found = options_of(SamplingParams)
    assert {name for name, one in found.items() if not one.info.shown} == {"ignore_eos"}
    assert set(found) == set(SamplingParams.__struct_fields__)
