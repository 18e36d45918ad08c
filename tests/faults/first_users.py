"""Two threads and two tasks of a fresh process that open a model for the first time, all at the same moment.

Prints as JSON what each got: the tokens of a reply, or its error.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib.abc
import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import shoal

USERS = 4
PACKAGE = "transformers"
"""What is imported late, because it takes long."""

MEETING_S, LATER_S = 2.0, 0.4


class Meeting(importlib.abc.MetaPathFinder):
    """Holds the first import of PACKAGE half-way until all users have asked for it, as a busy machine does by chance.

    Where something lets only one of them ask at a time, they are not waited for longer than MEETING_S.
    """

    def __init__(self) -> None:
        self._asking: set[int] = set()
        self._held = False
        self._import = builtins.__import__
        builtins.__import__ = self._ask
        sys.meta_path.insert(0, self)

    def _ask(self, name: str, *more: Any, **named: Any) -> ModuleType:
        if name.partition(".")[0] == PACKAGE:
            self._asking.add(threading.get_ident())
        return self._import(name, *more, **named)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Finds nothing, and takes its time for that."""
        if name.startswith(f"{PACKAGE}.") and not self._held:
            self._held = True
            until = time.monotonic() + MEETING_S
            while len(self._asking) < USERS and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(LATER_S)  # now they wait for this import


def in_a_thread(model: str, ticket: str, barrier: threading.Barrier) -> list[int] | str:
    """A user of blocking code."""
    barrier.wait()
    try:
        with shoal.connect(model, peers=[ticket], transport="tls") as remote:
            return list(remote.generate("the sea", max_tokens=4, ignore_eos=True).token_ids)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def in_tasks(model: str, ticket: str, barrier: threading.Barrier) -> list[list[int] | str]:
    """Two users in one event loop."""
    await asyncio.to_thread(barrier.wait)
    from shoal.client.remote_model import open_model

    async def use() -> list[int] | str:
        try:
            async with shoal.AsyncClient([ticket], only="tls") as client, await open_model(client, model) as remote:
                async with client.session(remote.spec, max_tokens=16) as session:
                    rows = await session.step(await remote.embed(remote.tokenizer.encode("the sea")))
                return [int((await remote.logits(rows))[-1].argmax())]
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return list(await asyncio.gather(use(), use()))


def main(model: str, ticket: str) -> None:
    """Let them all begin at once."""
    Meeting()
    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(2) as threads:
        users = [threads.submit(in_a_thread, model, ticket, barrier) for _ in range(2)]
        answers = asyncio.run(in_tasks(model, ticket, barrier))
        print(json.dumps([*(user.result() for user in users), *answers]))


if __name__ == "__main__":
    main(*sys.argv[1:])
