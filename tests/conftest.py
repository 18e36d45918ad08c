"""Shared by all tests: row-exact arithmetic is asked for before anything imports torch."""

from __future__ import annotations

from shoal.model.kernels.strict import strict_mode_environment

strict_mode_environment()

pytest_plugins = ["tests.devices", "tests.swarms"]
