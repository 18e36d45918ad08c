"""`shoal join`: a swarm gets a name on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.cli.join import join
from shoal.errors import InviteError, UsageError
from shoal.types import Span
from tests.faults.processes import SHOAL, ended, running
from tests.swarms import NUM_BLOCKS, SwarmMaker

ALL = Span(0, NUM_BLOCKS)


async def test_a_swarm_that_was_joined_needs_no_ticket(swarm_of: SwarmMaker, tmp_path: Path, tiny_model: Path) -> None:
    """By its name, or without where it is the only one."""
    home = {"SHOAL_HOME": str(tmp_path), "models": tiny_model.parent}
    async with swarm_of(ALL) as swarm:
        async with running(SHOAL, "join", swarm.ticket, "--as", "home", "--json", **home) as joining:  # type: ignore[arg-type]
            code, out, err = await ended(joining)
        assert code == 0, err
        assert json.loads(out) == {"name": "home", "models": [tiny_model.name]}
        asked = ("generate", "the sea", "--raw", "--max-tokens", "2", "--json")
        for named in ((), ("--swarm", "home")):
            async with running(SHOAL, *asked, *named, **home) as client:  # type: ignore[arg-type]
                code, out, err = await ended(client)
            assert code == 0, err
            assert len(json.loads(out)["token_ids"]) == 2
        variable = {"SHOAL_PEERS": swarm.ticket, "SHOAL_HOME": str(tmp_path / "none")}
        async with running(SHOAL, "status", "--json", **variable) as client:  # type: ignore[arg-type]
            code, out, err = await ended(client)
        assert code == 0, err
        assert json.loads(out)["models"][0]["missing"] == []


def test_it_needs_a_name() -> None:
    """An invite brings its own."""
    with pytest.raises(UsageError, match="--as NAME"):
        join("shoal1-x")
    with pytest.raises(UsageError, match="name"):
        join("shoal1-x", "Not A Name")


@pytest.mark.parametrize("text", ["shoal-invite2-later", "shoal-invite1-damaged", " shoal-invite"])
def test_an_invite_of_any_version_is_no_ticket(text: str) -> None:
    """What is wrong with it is said in an invite's words."""
    with pytest.raises(InviteError):
        join(text)
