"""What a server's process loads."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "transformers")


def test_a_server_does_not_load_torchs_compiler() -> None:
    """It takes 76 MB and seconds, and nothing here needs it; nor does a server need transformers."""
    script = f"import sys, shoal.server.server; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[]"
