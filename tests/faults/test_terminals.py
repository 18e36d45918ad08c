"""What other people's names do to a terminal: nothing."""

from __future__ import annotations

import json
from pathlib import Path

from shoal.swarm.identity import Identity
from shoal.types import Span
from tests.faults.processes import SHOAL, ended, running
from tests.faults.test_strangers import show
from tests.records import signed_record
from tests.swarms import NUM_BLOCKS, SwarmMaker

ALL = Span(0, NUM_BLOCKS)
ODD = "[/b]:+1:"


async def test_a_name_breaks_no_command(swarm_of: SwarmMaker, tiny_model: Path) -> None:
    """A reply through a server whose name would be markup, and the list of servers, show the name as it is."""
    asked = ("--raw", "--max-tokens", "4", "--transport", "tls")
    async with swarm_of(ALL, name=ODD) as swarm:
        async with running(
            SHOAL, "generate", "the sea", *asked, "--peers", swarm.ticket, models=tiny_model.parent
        ) as client:
            code, _, err = await ended(client)
        assert (code, "Traceback" in err) == (0, False), err
        assert ODD in err
        async with running(SHOAL, "status", "--peers", swarm.ticket, "--transport", "tls") as client:
            code, _, err = await ended(client)
        assert (code, "Traceback" in err) == (0, False), err
        assert ODD in err


async def test_an_ipv6_address_is_whole(swarm_of: SwarmMaker) -> None:
    """The list of servers says where a server that does not answer was looked for."""
    address = "tls://[::1]:9"
    async with swarm_of(ALL) as swarm:
        await show(swarm, signed_record(Identity.generate(), (address,), model=swarm.servers[0].record.model, span=ALL))
        async with running(SHOAL, "status", "--peers", swarm.ticket, "--transport", "tls", "--json") as client:
            code, out, err = await ended(client)
    assert code == 0, err
    [model] = json.loads(out)["models"]
    assert any(address in one["addresses"] and address in one["problem"] for one in model["servers"])
