"""`shoal resume`: a reply that another process has begun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from shoal.cli.connecting import ModelSource, connected
from shoal.cli.generate import print_reply
from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, Invite, SwarmName
from shoal.cli.which_swarm import chosen_swarm
from shoal.client.client_options import ConnectOptions


@with_option_flags()
def resume(
    file: Annotated[Path, typer.Argument(help="What `shoal generate --save` has kept.")],
    connection: ConnectOptions = ConnectOptions(),
    *,
    model: ModelSource = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    as_json: AsJson = False,
) -> None:
    """Go on with a reply from its file: from what the servers still hold, else from its tokens. The file is kept up to date."""
    from shoal.client.saved_reply import read_saved

    saved = read_saved(file)
    chosen = chosen_swarm(connection.peers, swarm, invite, found_otherwise=True)
    if not chosen.peers and chosen.private is None:
        chosen = chosen._replace(peers=tuple(saved.ways))
    connection = msgspec.structs.replace(connection, fingerprint=saved.session.model.fingerprint)
    with connected(model or _still_there(saved.source), connection, chosen) as remote:
        print_reply(remote.resume(saved, file), file, as_json, swarm)


def _still_there(source: str) -> str | None:
    """What the model was called, unless that was a path at which nothing is any more: then its fingerprint finds it."""
    return source if source and (not os.path.isabs(source) or os.path.exists(source)) else None
