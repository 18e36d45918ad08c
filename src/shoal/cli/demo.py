"""`shoal demo`: a whole swarm on this machine, for a minute, and a server that dies in the middle of its answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.output import AsJson, Transport, interruptible, print_json
from shoal.cli.terminal import ReplyText, say, styled, waits_for

if TYPE_CHECKING:
    from shoal.client.completion import Completion
    from shoal.client.sync import Model
    from shoal.local_cluster import LocalCluster

PROMPT = "Explain in a short paragraph why fish swim in schools."


def demo(
    servers: Annotated[int, typer.Option(help="How many servers share the model's blocks.", min=1, max=30)] = 3,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = PROMPT,
    max_tokens: Annotated[int, typer.Option(help="The longest reply, in tokens.", min=1)] = 96,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")] = False,
    threads: Annotated[int, typer.Option(help="Compute threads of each server.")] = 1,
    transport: Transport = None,
    as_json: AsJson = False,
) -> None:
    """Start servers in processes of their own, stream an answer through a real model, and kill one of them meanwhile."""
    from shoal.cli.generate import result, show_times
    from shoal.client.activity import Activity
    from shoal.client.sync import connect
    from shoal.local_cluster import LocalCluster
    from shoal.model.weights.model_source import demo_model_path

    model = str(demo_model_path())
    interruptible()
    waits_for(f"starting {servers + 1} servers")
    with LocalCluster(model, servers, threads=threads, transport=transport, spares=1) as swarm:
        if not as_json:
            say(f"{servers} servers and a spare on this machine, joined by one ticket:")
            say(swarm.ticket)
        activity = Activity()
        waits_for(lambda: str(activity))
        with connect(peers=[swarm.ticket], transport=transport, activity=activity) as remote:
            if not as_json:
                say("")
                say(styled(prompt, "bold"))
                say("")
            disturbed, story = _disturbed(remote, swarm, prompt, raw, max_tokens, quiet=as_json)
            if not as_json:
                _tell(story)
                show_times(disturbed)
            again = remote.generate(prompt, raw=raw, max_tokens=max_tokens)
            story["identical"] = again.token_ids == disturbed.token_ids
            if as_json:
                print_json({**result(disturbed), **story})
            else:
                same = "the same" if story["identical"] else styled("another", "bold red")
                say("asked again, with nobody dying: ", same, " answer, token for token")


def _disturbed(
    model: Model, swarm: LocalCluster, prompt: str, raw: bool, max_tokens: int, quiet: bool
) -> tuple[Completion, dict[str, Any]]:
    """Stream an answer and kill the middle server after a third of it; also what that cost."""
    story: dict[str, Any] = {}
    last_at, killed_at = time.monotonic(), None
    stream, text = model.stream(prompt, raw=raw, max_tokens=max_tokens), ReplyText()
    for piece in stream:
        now = time.monotonic()
        if killed_at is not None and stream.failovers and "pause_s" not in story:
            story["pause_s"] = now - last_at
        last_at = now
        if not quiet:
            text.write(piece)
        if killed_at is None and stream.usage.completion_tokens > max_tokens // 3:
            killed_at, victim = now, stream.route[(len(stream.route) - 1) // 2]
            swarm.of(victim.peer).kill()
            story |= {"killed": victim.name, "killed_after_tokens": stream.usage.completion_tokens}
            if not quiet:
                say(" ", styled(f"✗ {story['killed']} was killed", "bold red"), " ", end="")
    if not quiet:
        text.end(always=True)
    story["replaced_by"] = [name for event in stream.failovers for name in event.found]
    story["replayed_rows"] = sum(event.replayed_rows for event in stream.failovers)
    return stream.completion, story


def _tell(story: dict[str, Any]) -> None:
    if "pause_s" in story:
        say("")
        say(
            f"{story['killed']} died after {story['killed_after_tokens']} tokens; "
            f"{', '.join(story['replaced_by'])} took over {story['replayed_rows']} rows: "
            f"a pause of {story['pause_s']:.2f} s, and no token lost"
        )
        say("")
    else:
        say("")
        say("the answer was over before its server was missed")
        say("")
