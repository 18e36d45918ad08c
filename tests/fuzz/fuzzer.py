"""Mutates a target's inputs and counts what becomes of them; a fault is kept as a file that later runs begin with."""

from __future__ import annotations

import hashlib
import random
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from shoal.errors import ShoalError
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
SLOW_S = 2.0
"""An input that takes longer is a fault: some input of its kind would take for ever."""


class Outcome:
    """Of many inputs of a target: how many there were, how many were refused, and the faults."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.count = 0
        self.refused = 0
        self.faults: dict[str, bytes] = {}
        """What went wrong, by where and how, and an input that shows it."""

    def take(self, data: bytes) -> None:
        """Run one input."""
        self.count += 1
        began_at = time.process_time()
        try:
            TARGETS[self.target].run(data)
        except ShoalError as error:
            self.refused += 1
            if not str(error):
                self._fault("an error without a text", data)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._fault(f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"[:200], data)
        if time.process_time() - began_at > SLOW_S:
            self._fault("it took too long", data)

    def _fault(self, what: str, data: bytes) -> None:
        self.faults.setdefault(what, data)


def kept(target: str) -> Iterator[bytes]:
    """The inputs of a target that once showed a fault."""
    for path in sorted((CORPUS / target.replace(" ", "-")).glob("*")):
        yield path.read_bytes()


def fuzz(target: str, count: int, seed: int, until: float = float("inf")) -> Outcome:
    """Run what is kept, then `count` mutated inputs, or as many as there is time for; the same for the same seed."""
    seeds = TARGETS[target].seeds()
    rng, outcome = random.Random(f"{seed} {target}"), Outcome(target)
    for data in (*seeds, *kept(target)):
        outcome.take(data)
    while outcome.count < count and time.monotonic() < until:
        outcome.take(mutated(rng, seeds))
    return outcome


def keep(outcome: Outcome) -> None:
    """Put the inputs that showed a fault into the corpus."""
    folder = CORPUS / outcome.target.replace(" ", "-")
    for data in outcome.faults.values():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
