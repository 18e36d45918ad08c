"""Shared by all tests: row-exact arithmetic is asked for before anything imports torch, and tokenizers that tests convert
are kept in the checkout, not in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.model.kernels.strict import strict_mode_environment

strict_mode_environment()
os.environ.setdefault("SHOAL_CACHE", str(Path(__file__).parent.parent / ".pytest_cache" / "shoal"))

os.environ.setdefault("SHOAL_HOME", str(Path(__file__).parent.parent / ".pytest_cache" / "home"))

pytest_plugins = ["tests.devices", "tests.swarms"]
