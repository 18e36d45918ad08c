"""The first use of Shoal in a process, by several at the same moment."""

from __future__ import annotations

import json
from pathlib import Path

from shoal.types import Span
from tests.faults.processes import ended, running
from tests.swarms import NUM_BLOCKS, SwarmMaker


async def test_several_use_a_model_for_the_first_time_at_once(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """A model opens for two threads and two tasks of a fresh process, all of whom ask for it first thing."""
    async with swarm_of(Span(0, NUM_BLOCKS)) as swarm:
        async with running("tests.faults.first_users", str(tiny_model), swarm.ticket) as process:
            code, out, err = await ended(process)
    assert code == 0, err
    answers = json.loads(out)
    assert [type(answer) for answer in answers] == [list] * 4, answers
    assert len({answer[0] for answer in answers}) == 1
