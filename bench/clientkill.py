"""A client that is killed in the middle of its reply, and the process that goes on with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shoal.client.saved_reply import SavedReply, read_saved
from shoal.errors import ShoalError, UsageError
from tests.support.fault_scenario import FaultScenario

POLL_S = 0.001
"""Files set no event."""


async def killed_and_resumed(
    scene: FaultScenario, prompt: str, sampling: dict[str, Any], at_token: int
) -> tuple[list[int], float]:
    """The tokens of a reply whose client dies (kill -9) after `at_token` of them and is resumed by another process.

    Also the seconds from the death to the first token after it, a process's start included.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reply"
        options = {
            "model": scene.model.source,
            "tickets": [actor.ticket for actor in scene.troupe.live],
            "transport": scene.troupe.transport,
            "save": str(path),
        }
        victim = await _start({**options, "prompt": prompt, "sampling": sampling})
        try:
            while (saved := _saved(path)) is None or len(saved.token_ids) < at_token:
                if victim.returncode is not None:
                    raise ShoalError("the client ended before its reply was in its file")
                await asyncio.sleep(POLL_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                victim.kill()
            await victim.wait()
        died_at = time.monotonic()
        saved = read_saved(path)
        heir = await _start(options)
        try:
            return await _follow(heir, path, len(saved.token_ids), died_at)
        finally:
            with contextlib.suppress(ProcessLookupError):
                heir.kill()
            await heir.wait()


async def _follow(heir: asyncio.subprocess.Process, path: Path, had: int, died_at: float) -> tuple[list[int], float]:
    ended = asyncio.ensure_future(heir.communicate())
    while not ended.done() and len(read_saved(path).token_ids) <= had:  # noqa: ASYNC110 (see POLL_S)
        await asyncio.sleep(POLL_S)
    pause_s = time.monotonic() - died_at
    output, _ = await ended
    if heir.returncode:
        raise ShoalError(f"the resuming client ended with code {heir.returncode}")
    token_ids: list[int] = json.loads(output)["token_ids"]
    return token_ids, pause_s


def _saved(path: Path) -> SavedReply | None:
    try:
        return read_saved(path)
    except UsageError:  # not yet
        return None


async def _start(options: dict[str, Any]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.doomed_client",
        json.dumps(options),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
