"""How client commands open a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from shoal.cli.terminal import waits_for
from shoal.client.activity import Activity
from shoal.client.client_options import ConnectOptions

if TYPE_CHECKING:
    from shoal.client.sync import Model
    from shoal.swarm.discovery.discovery_options import Discoveries
    from shoal.swarm.membership.storage import PrivateSwarm

ModelSource = Annotated[
    str | None, typer.Option("--model", help="Hub id, directory or GGUF file; default: what the swarm serves.")
]


def connected(
    model: str | None, asked: ConnectOptions, swarm: PrivateSwarm | None, discoveries: Discoveries | None = None
) -> Model:
    """The model, opened; raises what `connect` raises. What is waited for is shown from now on."""
    activity = Activity()
    waits_for(lambda: str(activity) or "starting")
    from shoal.client.sync import connect

    whole = msgspec.structs.replace(asked, invite=swarm, discoveries=discoveries, activity=activity)
    return connect(model, **msgspec.structs.asdict(whole))
