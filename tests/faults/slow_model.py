"""The `shoal` command where a model's files come from a slow disk; it says so on standard error when it begins to read."""

from __future__ import annotations

import sys
import time
from typing import Any

from shoal.cli.main import main
from shoal.client import remote_model

READING, READING_S = "reading", 100.0


def _read(*_: Any, **__: Any) -> None:
    print(READING, file=sys.stderr, flush=True)
    time.sleep(READING_S)
    raise OSError("nobody was to wait for this")


if __name__ == "__main__":
    remote_model.load_tokenizer = _read  # type: ignore[assignment]
    main()
