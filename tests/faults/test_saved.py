"""A reply that is kept in a file, and gone on with from somewhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from shoal.types import Span
from tests.faults.processes import SHOAL, ended, running
from tests.swarms import NUM_BLOCKS, SwarmMaker

ALL = Span(0, NUM_BLOCKS)


async def test_a_reply_is_resumed_from_anywhere(swarm_of: SwarmMaker, tiny_model: Path, tmp_path: Path) -> None:
    """The file knows where the model is; when that has been moved, the fingerprint finds it."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    model = shutil.copytree(tiny_model, here / tiny_model.name)
    asked = ("--raw", "--max-tokens", "6", "--transport", "tls", "--json", "--save", "reply", "--model", model.name)
    async with swarm_of(ALL) as swarm:
        async with running(SHOAL, "generate", "the sea", *asked, "--peers", swarm.ticket, folder=here) as client:
            code, out, err = await ended(client)
            assert code == 0, err
        first = json.loads(out)["text"]
        for moved in (False, True):
            if moved:
                model.rename(there / model.name)
            again = ("resume", str(here / "reply"), "--transport", "tls", "--json")
            async with running(SHOAL, *again, folder=there, models=there) as client:
                code, out, err = await ended(client)
            assert code == 0, err
            assert json.loads(out)["text"] == first


async def test_a_file_of_ones_own_is_not_overwritten(swarm_of: SwarmMaker, tmp_path: Path) -> None:
    """The command says so, and contacts nobody."""
    notes = tmp_path / "notes.txt"
    notes.write_text("remember the milk")
    async with swarm_of(ALL) as swarm:
        command = ("generate", "the sea", "--save", str(notes), "--peers", swarm.ticket)
        async with running(SHOAL, *command) as client:
            code, _, err = await ended(client)
    assert (code, notes.read_text()) == (1, "remember the milk")
    assert "not replaced" in err
