"""The first use of Shoal in a process, by several at the same moment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shoal.types import Span
from tests.faults.first_users import USERS
from tests.faults.processes import ended, running
from tests.swarms import NUM_BLOCKS, SwarmMaker

TIMES = int(os.environ.get("SHOAL_FIRST_USES", "1"))
"""Fresh processes for each kind of users."""


@pytest.mark.timeout(60 + 30 * TIMES)
@pytest.mark.parametrize("kind", USERS)
async def test_a_model_is_used_for_the_first_time(swarm_of: SwarmMaker, tiny_model: Path, kind: str) -> None:
    """A model opens for threads and tasks of a fresh process, all of whom ask for it first thing, and in a notebook."""
    async with swarm_of(Span(0, NUM_BLOCKS)) as swarm:
        for _ in range(TIMES):
            async with running("tests.faults.first_users", kind, str(tiny_model), swarm.ticket) as process:
                code, out, err = await ended(process)
            assert code == 0, err
            answers = json.loads(out)
            assert [type(answer) for answer in answers] == [list] * USERS[kind], answers
            assert len({tuple(answer) for answer in answers}) == 1
