"""`python -m tests.fuzz`: mutated inputs of every kind, for a time or a number; exits with 1 where a fault was found."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.fuzzer import fuzz, keep
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Fuzz the targets in turn and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of: {', '.join(TARGETS)}; all by default")
    parser.add_argument("--count", type=int, default=10**12, help="inputs of each target")
    parser.add_argument("--minutes", type=float, default=60.0, help="time for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = set(given.targets) - set(TARGETS)
    if wrong:
        parser.error(f"there is no target {', '.join(sorted(wrong))}")
    names, faults = given.targets or list(TARGETS), 0
    for name in names:
        began_at = time.monotonic()
        outcome = fuzz(name, given.count, given.seed, began_at + given.minutes * 60 / len(names))
        keep(outcome)
        faults += len(outcome.faults)
        taken_s = time.monotonic() - began_at
        print(f"{name:22} {outcome.count:>12,} inputs  {outcome.refused:>12,} refused  {taken_s:8.1f} s")
        for what in outcome.faults:
            print(f"  fault: {what}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
