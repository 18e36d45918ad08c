"""What can be said of a quantization."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.quantize.quantize_options import QuantizeOptions


def test_targets_as_people_write_them() -> None:
    """One, several, as a text or as numbers."""
    for given in ("2.5,3", [2.5, 3], (2.5, 3.0)):
        assert QuantizeOptions.of({"model": "m", "bits": given}).bits == (2.5, 3.0)
    assert QuantizeOptions.of({"model": "m", "bits": 4}).bits == (4.0,)


@pytest.mark.parametrize("wrong", ["", "1.5", "9", "3,3", "x", "nan"])
def test_targets_that_make_no_sense(wrong: str) -> None:
    """Each is refused by name."""
    with pytest.raises(UsageError, match="bits"):
        QuantizeOptions.of({"model": "m", "bits": wrong})


def test_directories() -> None:
    """Of one target and of several."""
    plain = QuantizeOptions.of({"model": "m", "bits": "3.5"})
    assert plain.directories("org/Name") == {3.5: Path("Name-exl2-3.5bpw")}
    assert plain.changed({"out": Path("d")}).directories("n") == {3.5: Path("d")}
    several = QuantizeOptions.of({"model": "m", "bits": "2.5,3", "out": Path("d")})
    assert several.directories("n") == {2.5: Path("d/2.5bpw"), 3.0: Path("d/3bpw")}
