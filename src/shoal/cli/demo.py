"""`shoal demo`: a whole swarm on this machine, for a minute."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import sampling as options
from shoal.cli.output import AsJson, Transport, console, print_json

PROMPT = "Explain in a short paragraph why fish swim in schools."


def demo(
    servers: Annotated[int, typer.Option(help="How many servers share the model's blocks.", min=1, max=30)] = 3,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = PROMPT,
    max_tokens: options.MaxTokens = 96,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")] = False,
    threads: Annotated[int, typer.Option(help="Compute threads of each server.")] = 1,
    transport: Transport = None,
    as_json: AsJson = False,
) -> None:
    """Start servers in processes of their own, join them with one ticket, and stream an answer through a real model."""
    from shoal.cli.generate import result, show_times, stream_reply
    from shoal.cli.swarm import LocalSwarm
    from shoal.client.sync import connect
    from shoal.weights.source import demo_model_path

    model = str(demo_model_path())
    with LocalSwarm(model, servers, threads=threads, transport=transport) as swarm:
        if not as_json:
            console.print(f"{servers} servers on this machine, joined by one ticket:")
            console.print(swarm.ticket, soft_wrap=True)
        with connect(peers=[swarm.ticket], transport=transport) as remote:
            if not as_json:
                console.print(f"\n[bold]{prompt}[/]\n")
            stream_reply(remote, prompt, raw=raw, as_json=as_json, sampling={"max_tokens": max_tokens})
            if as_json:
                print_json(result(remote))
            else:
                console.print()
                show_times(remote)
