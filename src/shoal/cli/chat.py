"""`shoal chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import discovery_flags as discovery
from shoal.cli import sampling_flags as options
from shoal.cli.output import AsJson, Head, Invite, Peers, SwarmName, Transport, console, print_json, private, report
from shoal.errors import GrantExceeded, ShoalError

if TYPE_CHECKING:
    from shoal.client.sync import CompletionStream


def chat(
    peers: Peers = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    model: Annotated[
        str | None, typer.Option(help="Hub id, directory or GGUF file; default: what the swarm serves.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    context: Annotated[int, typer.Option(help="Tokens that the conversation may have.")] = 4096,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.95,
    seed: options.Seed = None,
    lan: discovery.Lan = False,
    public: discovery.Public = False,
    swarm_name: discovery.SwarmName = None,
    dht_node: discovery.DhtNodes = None,
    relay: discovery.Relay = None,
    interface: discovery.Interface = "0.0.0.0",
    yes: discovery.Yes = False,
    transport: Transport = None,
    head: Head = "float32",
    as_json: AsJson = False,
) -> None:
    """Chat with a model. The session stays open between turns. Ctrl-C ends a reply, Ctrl-D the chat."""
    from shoal.client.sync import connect

    chosen = options.sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    found = discovery.client_discoveries(
        model=model,
        lan=lan,
        public=public,
        swarm_name=swarm_name,
        dht_nodes=dht_node,
        relay=relay,
        interface=interface,
        yes=yes,
    )
    with (
        connect(
            model, peers=peers or (), invite=private(swarm, invite), transport=transport, discoveries=found, head=head
        ) as remote,
        remote.chat(system, max_tokens=context) as talk,
    ):
        if not as_json:
            console.print(f"{remote.remote.spec.name} · Ctrl-C ends a reply, Ctrl-D the chat")
        while (line := _ask(as_json)) is not None:
            if line.strip():
                _turn(talk.stream, line, chosen, as_json)


def _turn(stream: Callable[..., CompletionStream], line: str, sampling: Mapping[str, Any], as_json: bool) -> None:
    """One answer. Ctrl-C or an error ends it, and the conversation goes on as if the question had not been asked."""
    try:
        with stream(line, **sampling) as answer:
            for piece in answer:
                if not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        if as_json:
            print_json({"text": answer.text, "prefill_rows": answer.timings.prefill_tokens})
        else:
            sys.stdout.write("\n")
    except KeyboardInterrupt:
        console.print("\n(cancelled; the question is forgotten)")
    except ShoalError as error:
        report(error)
        if isinstance(error, GrantExceeded):
            console.print("the conversation is full: begin another, or give it more tokens (--context)")


def _ask(as_json: bool) -> str | None:
    if not as_json and sys.stdin.isatty():
        console.print("[bold]>[/] ", end="")
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        return None
    return line.rstrip("\n") if line else None
