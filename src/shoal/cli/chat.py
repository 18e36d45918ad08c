"""`shoal chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from shoal.cli.connecting import ModelSource, connected
from shoal.cli.discovery_flags import Yes, client_discoveries
from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, Invite, SwarmName, print_json, private, report
from shoal.cli.terminal import end_line, say, styled, waiting, write
from shoal.client.client_options import ConnectOptions, SessionOptions
from shoal.errors import GrantExceeded, ShoalError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.swarm.routing.route_options import RouteOptions

if TYPE_CHECKING:
    from shoal.client.sync import CompletionStream

TALK = SamplingParams(max_tokens=512, temperature=0.7, top_p=0.95)


@with_option_flags("dht_port", "hello_port")
def chat(
    connection: ConnectOptions = ConnectOptions(),
    sampling: SamplingParams = TALK,
    session: SessionOptions = SessionOptions(),
    route: RouteOptions = RouteOptions(),
    discovery: DiscoveryOptions = DiscoveryOptions(),
    *,
    model: ModelSource = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    context: Annotated[int, typer.Option(help="Tokens that the conversation may have.", min=1)] = 4096,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Chat with a model. The session stays open between turns. Ctrl-C ends a reply, Ctrl-D the chat."""
    found = client_discoveries(model, discovery, yes)
    asked = msgspec.structs.replace(session, route=route)
    with (
        connected(model, connection, private(swarm, invite), found) as remote,
        remote.chat(system, max_tokens=context, options=asked) as talk,
    ):
        if not as_json:
            say(f"{remote.remote.spec.name} · Ctrl-C ends a reply, Ctrl-D the chat")
        while (line := _ask(as_json)) is not None:
            if line.strip():
                _turn(talk.stream, line, msgspec.structs.asdict(sampling), as_json)


def _turn(stream: Callable[..., CompletionStream], line: str, sampling: Mapping[str, Any], as_json: bool) -> None:
    """One answer. Ctrl-C or an error ends it, and the conversation goes on as if the question had not been asked."""
    written = ""
    try:
        with stream(line, **sampling) as answer:
            for piece in answer:
                if not as_json:
                    write(piece)
                    written = piece or written
        if as_json:
            print_json({"text": answer.text, "prefill_rows": answer.timings.prefill_tokens})
        else:
            write("\n")
    except KeyboardInterrupt:
        end_line(written)
        say("(cancelled; the question is forgotten)")
    except ShoalError as error:
        end_line(written)
        report(error)
        if isinstance(error, GrantExceeded):
            say("the conversation is full: begin another, or give it more tokens (--context)")


def _ask(as_json: bool) -> str | None:
    if not as_json and sys.stdin.isatty():
        say(styled(">", "bold"), " ", end="")
    try:
        with waiting.silent():
            line = sys.stdin.readline()
    except KeyboardInterrupt:
        return None
    return line.rstrip("\n") if line else None
