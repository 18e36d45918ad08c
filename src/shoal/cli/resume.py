"""`shoal resume`: a reply that another process has begun."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.generate import print_reply
from shoal.cli.output import AsJson, Invite, Peers, SwarmName, Transport, private


def resume(
    file: Annotated[Path, typer.Argument(help="What `shoal generate --save` has kept.")],
    peers: Peers = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    model: Annotated[
        str | None, typer.Option(help="Hub id, directory or GGUF file; default: as when the reply was begun.")
    ] = None,
    transport: Transport = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a reply from its file: from what the servers still hold, else from its tokens. The file is kept up to date."""
    from shoal.client.saved_reply import read_saved
    from shoal.client.sync import connect

    saved = read_saved(file)
    joined = private(swarm, invite)
    ways = peers or (() if joined is not None else saved.ways)
    with connect(model or saved.source or None, peers=ways, invite=joined, transport=transport) as remote:
        print_reply(remote.resume(saved, file), file, as_json)
