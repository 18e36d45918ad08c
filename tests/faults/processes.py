"""Programs that tests start: the command line, and small modules beside it. None of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOAL = "shoal.cli.main"

ENDS_S = 50.0
"""How long a program may take to its end on a machine that is busy with others."""


@contextlib.asynccontextmanager
async def running(
    module: str, *arguments: str, models: Path | None = None, folder: Path = ROOT, **variables: str
) -> AsyncIterator[Process]:
    """A program, started in `folder`, that is killed if it is still there in the end.

    `models` is a folder in which it finds checkpoints; `variables` are more of its environment.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            **({} if models is None else {"SHOAL_MODELS": str(models)}),
            **variables,
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def ended(process: Process, within_s: float = ENDS_S, said: bytes = b"") -> tuple[int, str, str]:
    """Its exit code and what it still says, on standard output and standard error; TimeoutError if it goes on.

    `said` is the last that is said to it.
    """
    async with asyncio.timeout(within_s):
        out, err = await process.communicate(said)
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


async def heard(process: Process, within_s: float = ENDS_S) -> str:
    """Its next line on standard output; empty at the end. TimeoutError if none comes."""
    assert process.stdout is not None
    async with asyncio.timeout(within_s):
        return (await process.stdout.readline()).decode(errors="replace").rstrip("\n")
