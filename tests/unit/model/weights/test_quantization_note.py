"""What stands in and beside a checkpoint that our own quantizer made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import CheckpointError
from shoal.model.weights.checkpoint import fingerprint
from shoal.model.weights.quantization_note import NO_NOTE, QuantizationNote, note_of
from shoal.types import MAX_KL_NATS
from tests.unit.model.weights.checkpoints import MemoryCheckpoint

BASE = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("entry", "report", "note"),
    [
        (None, {}, NO_NOTE),
        ({}, {"base_fingerprint": "", "kl": None, "layers": [{"bits": 3}]}, NO_NOTE),
        (None, {"base_fingerprint": BASE}, QuantizationNote(BASE)),
        ({"base_fingerprint": BASE}, {}, QuantizationNote(BASE)),
        ({"base_fingerprint": BASE}, {"base_fingerprint": BASE, "kl": 0.03125}, QuantizationNote(BASE, 0.03125)),
        ({}, {"kl": 0}, QuantizationNote("", 0.0)),
        ({}, {"kl": -1e-9}, QuantizationNote("", 0.0)),
        ({}, {"evaluation": {"divergence": 0.25}}, QuantizationNote("", 0.25)),
        ({}, {"kl": 0.125, "evaluation": {"divergence": 0.25}}, QuantizationNote("", 0.125)),
        ("odd", {"evaluation": 3}, NO_NOTE),
    ],
)
def test_what_is_taken_from_it(entry: Any, report: dict[str, Any], note: QuantizationNote) -> None:
    """The base, by the configuration or by the report, and the divergence; the rest is for people."""
    assert note_of({"quantization_config": entry}, report, "here") == note
    assert note_of({}, {}, "here") == NO_NOTE


@pytest.mark.parametrize(
    "given",
    [
        {"base_fingerprint": BASE[:-1]},
        {"base_fingerprint": BASE.upper()},
        {"base_fingerprint": f"{BASE}\n"},
        {"base_fingerprint": 7},
        {"base_fingerprint": None},
        {"base_fingerprint": [BASE]},
        {"kl": -0.1},
        {"kl": float("nan")},
        {"kl": float("inf")},
        {"kl": 101},
        {"kl": True},
        {"kl": "0.1"},
        {"kl": [0.1]},
    ],
)
def test_what_it_cannot_say(given: dict[str, Any]) -> None:
    """The field is named, and the place."""
    with pytest.raises(CheckpointError, match=f"here: {next(iter(given))} is"):
        note_of({}, given, "here")
    if "kl" not in given:
        with pytest.raises(CheckpointError, match="here: base_fingerprint is"):
            note_of({"quantization_config": given}, {}, "here")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(ANY_JSON, ANY_JSON, ANY_JSON, ANY_JSON)
def test_whatever_stands_there_is_a_note_or_refused(entry: Any, base: Any, kl: Any, evaluation: Any) -> None:
    """Nothing but our own error; what is taken has its form."""
    report = {"base_fingerprint": base, "kl": kl, "evaluation": {"divergence": evaluation}}
    try:
        note = note_of({"quantization_config": entry}, report, "here")
    except CheckpointError:
        return
    assert len(note.base_fingerprint) in (0, 32)
    assert note.kl_nats is None or 0 <= note.kl_nats <= MAX_KL_NATS


def test_two_bases_are_one_too_many() -> None:
    """The report lies beside another checkpoint than its own."""
    with pytest.raises(CheckpointError, match=f"two bases, {BASE} and {'ab' * 16}"):
        note_of({"quantization_config": {"base_fingerprint": BASE}}, {"base_fingerprint": "ab" * 16}, "here")


def test_what_was_made_from_a_base_has_its_fingerprint() -> None:
    """Servers of a base and of what was made from it are servers of one model."""
    made = MemoryCheckpoint({}, model_type="llama")
    own = fingerprint(made)
    made.note = QuantizationNote(BASE)
    assert fingerprint(made) == BASE != own
