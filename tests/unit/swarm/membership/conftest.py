"""The folder of a private swarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.swarm.membership.storage import SwarmFolder


@pytest.fixture
def folder(tmp_path: Path) -> SwarmFolder:
    """An empty folder."""
    return SwarmFolder("home", tmp_path)
