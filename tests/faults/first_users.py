"""Users of a fresh process who open a model for the first time, all at the same moment: KIND MODEL TICKET.

`threads`: three of blocking code. `tasks`: three in one event loop. `notebook`: blocking code in a cell, beneath which an event
loop runs. `both`: two threads and two tasks. Prints as JSON what each got: the tokens of a reply, or its error.
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

USERS = {"threads": 3, "tasks": 3, "notebook": 1, "both": 4}
PACKAGE = "transformers"
"""What is imported late, because it takes long."""

MEETING_S, LATER_S = 2.0, 0.4


class Meeting(importlib.abc.MetaPathFinder):
    """Holds the first import of PACKAGE half-way until all users have asked for it, as a busy machine does by chance.

    Where something lets only one of them ask at a time, they are not waited for longer than MEETING_S.
    """

    def __init__(self, users: int) -> None:
        self._users = users
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
            while len(self._asking) < self._users and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(LATER_S)  # now they wait for this import


def blocking(model: str, ticket: str) -> list[int] | str:
    """A user of blocking code."""
    try:
        with shoal.connect(model, peers=[ticket], transport="tls") as remote:
            return list(remote.generate("the sea", max_tokens=4, ignore_eos=True).token_ids)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def task(model: str, ticket: str) -> list[int] | str:
    """A user of asyncio code."""
    try:
        async with await shoal.connect_async(model, peers=[ticket], transport="tls") as remote:
            return list((await remote.generate("the sea", max_tokens=4, ignore_eos=True)).token_ids)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def cell(model: str, ticket: str) -> list[int] | str:
    """A cell of a notebook: its loop runs, and waits for blocking code in it."""
    return blocking(model, ticket)


async def tasks(count: int, model: str, ticket: str) -> list[list[int] | str]:
    """So many in one event loop."""
    return list(await asyncio.gather(*(task(model, ticket) for _ in range(count))))


def main(kind: str, model: str, ticket: str) -> None:
    """Let them all begin at once."""
    threads, in_tasks = {"threads": (3, 0), "tasks": (0, 3), "notebook": (0, 0), "both": (2, 2)}[kind]
    Meeting(USERS[kind])
    barrier = threading.Barrier(max(1, threads + bool(in_tasks)))

    def user() -> list[int] | str:
        barrier.wait()
        return blocking(model, ticket)

    async def crowd() -> list[list[int] | str]:
        await asyncio.to_thread(barrier.wait)
        return await tasks(in_tasks, model, ticket)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        users = [pool.submit(user) for _ in range(threads)]
        answers = asyncio.run(crowd()) if in_tasks else []
        answers += [one.result() for one in users]
    if kind == "notebook":
        answers.append(asyncio.run(cell(model, ticket)))
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
