"""A user who presses Ctrl-C while the first use of Shoal imports torch, catches KeyboardInterrupt, and tries again.

Prints how the first use ended, and then the sum of two ones as torch computes it.
"""

from __future__ import annotations

import importlib.abc
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import ModuleType

import shoal

HALF_WAY, MOMENT_S = "torch.nn", 0.3


class Presses(importlib.abc.MetaPathFinder):
    """Presses Ctrl-C half-way through the import, once."""

    pressed = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Finds nothing."""
        if name == HALF_WAY and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(MOMENT_S)


def main() -> None:
    """Try twice."""
    sys.meta_path.insert(0, Presses())
    try:
        print(shoal.connect.__name__, flush=True)
    except BaseException as error:
        print(type(error).__name__, flush=True)
    assert shoal.connect is not None
    import torch

    print(int(torch.ones(2).sum()), flush=True)


if __name__ == "__main__":
    main()
