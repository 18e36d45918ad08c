"""MKL's strict mode, which has to be asked for before torch is imported. Imports nothing itself."""

from __future__ import annotations

import os
import sys

VARIABLE = "MKL_CBWR"
STRICT = "AVX2,STRICT"


def strict_mode_environment() -> bool:
    """Ask MKL for conditional numerical reproducibility, unless the user has set it otherwise.

    Returns whether it can still take effect: False when torch is loaded already and the variable was not set in time. It
    is a help, not a promise: `engine.proof` decides what is exact. (Intel oneMKL developer guide, "Getting
    Reproducible Results"; 2024.2 honours it on AMD as well.)
    """
    if VARIABLE in os.environ:
        return True
    if "torch" in sys.modules:
        return False
    os.environ[VARIABLE] = STRICT
    return True
