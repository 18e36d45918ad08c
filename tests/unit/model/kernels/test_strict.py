"""Asking for MKL's strict mode in time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shoal.model.kernels.strict import STRICT, VARIABLE, strict_mode_environment


def test_it_is_set_before_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch in the process the variable is set and will be read."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert strict_mode_environment()
    assert os.environ[VARIABLE] == STRICT


def test_it_is_too_late_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch loaded nothing is set, since nobody would read it."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert not strict_mode_environment()
    assert VARIABLE not in os.environ


def test_the_users_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode that the user has set is left alone."""
    monkeypatch.setenv(VARIABLE, "AVX512,STRICT")
    assert strict_mode_environment()
    assert os.environ[VARIABLE] == "AVX512,STRICT"


def test_the_module_does_not_load_torch() -> None:
    """Importing it is possible before torch, in a fresh interpreter."""
    script = "import sys, shoal.model.kernels.strict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
