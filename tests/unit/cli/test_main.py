"""The command as a whole: what its start imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "huggingface_hub", "gguf", "jinja2"}


@pytest.mark.parametrize(
    "program",
    [
        "import shoal.cli.main; shoal.cli.main.make_app()",
        "import shoal.client.client, shoal.transport.iroh_transport",
    ],
    ids=["help", "status"],
)
def test_a_command_imports_what_it_uses(program: str) -> None:
    """`shoal --help` and `shoal status` load nothing that takes long."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert not HEAVY & set(shown.stdout.split())
