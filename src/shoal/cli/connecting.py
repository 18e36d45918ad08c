"""How client commands open a model."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from shoal.cli.output import interruptible
from shoal.cli.terminal import waits_for
from shoal.client.activity import Activity
from shoal.client.client_options import ConnectOptions
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.cli.which_swarm import ChosenSwarm
    from shoal.client.sync import Model
    from shoal.swarm.discovery.discovery_options import Discoveries

ModelSource = Annotated[
    str | None, typer.Option("--model", help="Hub id, directory or GGUF file; default: what the swarm serves.")
]


def _told(activity: Activity, seen: list[str]) -> str:
    """What is under way; between two things that have a name, and before the first, what they are for."""
    if text := str(activity):
        seen[:] = [text]
    return text or ("preparing the prompt" if seen else "starting")


def connected(
    model: str | None, asked: ConnectOptions, swarm: ChosenSwarm, discoveries: Discoveries | None = None
) -> Model:
    """The model, opened; raises what `connect` raises. What is waited for is shown from now on."""
    activity = Activity()
    waits_for(partial(_told, activity, []))
    from shoal.client.sync import connect
    from shoal.swarm.discovery.address_book import AddressBook

    interruptible()
    whole = msgspec.structs.replace(
        asked, peers=swarm.peers, invite=swarm.private, discoveries=discoveries, activity=activity
    )
    remote = connect(model, **msgspec.structs.asdict(whole))
    if swarm.name:
        with contextlib.suppress(UsageError):  # what cannot be noted is no reason to stop
            AddressBook().refresh(swarm.name, swarm.peers, remote.remote.client.records())
    return remote
