"""Row-exactness in the BLAS modes that this test run is not in: MKL reads its mode once, as torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.model.kernels.strict import VARIABLE

# torch comes first, so that the test configuration finds it too late to ask for strict mode.
SCRIPT = "import sys, torch, pytest; sys.exit(pytest.main(sys.argv[1:]))"


@pytest.mark.parametrize("mode", [None, "AVX2,STRICT", "AVX512,STRICT"])
def test_rows_are_exact_in_every_mode(mode: str | None) -> None:
    """The tile that the proof finds keeps rows exact without strict mode, and in either strict mode."""
    if mode == os.environ.get(VARIABLE):
        pytest.skip("the other tests run in this mode")
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    if mode is not None:
        environment[VARIABLE] = mode
    tests = Path(__file__).with_name("test_tiles.py")
    command = [sys.executable, "-c", SCRIPT, str(tests), "-p", "no:cacheprovider", "-k", "row_exact"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
