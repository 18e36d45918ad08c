"""`shoal chat`: a conversation in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from shoal.cli.chat_commands import ChatCommands
from shoal.cli.connecting import ModelSource, connected
from shoal.cli.discovery_flags import Yes, client_discoveries
from shoal.cli.line_editor import LineEditor
from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, Invite, SwarmName, print_json, report
from shoal.cli.terminal import FINISHING, ReplyText, say, waits_for
from shoal.cli.which_swarm import chosen_swarm
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
    history: Annotated[bool, typer.Option(help="Keep the lines that you type for the next chat.")] = True,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Chat with a model. The session stays open between turns. Ctrl-C ends a reply, Ctrl-D the chat."""
    found = client_discoveries(model, discovery, yes)
    chosen = chosen_swarm(connection.peers, swarm, invite, found is not None)
    asked = msgspec.structs.replace(session, route=route)
    with (
        connected(model, connection, chosen, found) as remote,
        remote.chat(system, max_tokens=context, options=asked) as talk,
    ):
        if not as_json:
            say(f"{remote.remote.spec.name} · Ctrl-C ends a reply, Ctrl-D the chat, /help shows what else there is")
        commands, editor = ChatCommands(talk), LineEditor(_history() if history else None, prompts=not as_json)
        with editor:
            while (line := editor.ask()) is not None:
                _answer(talk.stream, commands, line, msgspec.structs.asdict(sampling), as_json)
        waits_for(FINISHING)


def _answer(
    stream: Callable[..., CompletionStream],
    commands: ChatCommands,
    line: str,
    sampling: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Do what a line says. For programs (`as_json`) no line is a command."""
    try:
        said = line if as_json else commands.taken(line)
    except ShoalError as error:
        report(error)
        return
    if said is not None and said.strip() and not _turn(stream, said, sampling, as_json):
        commands.failed()


def _history() -> Path:
    from shoal.server.server_place import state_home

    return state_home() / "chat_history"


def _turn(stream: Callable[..., CompletionStream], line: str, sampling: Mapping[str, Any], as_json: bool) -> bool:
    """One answer, and whether it came. Ctrl-C or an error ends it, and it is as if the question had not been asked."""
    text = ReplyText()
    try:
        with stream(line, **sampling) as answer:
            for piece in answer:
                if not as_json:
                    text.write(piece)
        if as_json:
            print_json({"text": answer.text, "prefill_rows": answer.timings.prefill_tokens})
        else:
            text.end(always=True)
        return True
    except KeyboardInterrupt:
        text.end()
        say("(cancelled; the question is forgotten; /retry asks it again)")
    except ShoalError as error:
        text.end()
        report(error)
        if isinstance(error, GrantExceeded):
            say("the conversation is full: begin another, or give it more tokens (--context)")
    return False
