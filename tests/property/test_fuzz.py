"""What comes from outside is taken or refused with one of our errors, whatever it is; `make fuzz` tries for an hour."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzzer import fuzz
from tests.fuzz.targets import FILES, TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_inputs_are_taken_or_refused(target: str) -> None:
    """Sound ones, those that once showed a fault, and some hundreds more."""
    outcome = fuzz(target, count=300 if target in FILES else 1000, seed=1)
    assert not outcome.faults
    assert 0 < outcome.refused < outcome.count
