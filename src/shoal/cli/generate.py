"""`shoal generate`: one reply."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import discovery_flags as discovery
from shoal.cli import sampling_flags as options
from shoal.cli.output import AsJson, Head, Invite, Peers, SwarmName, Transport, console, print_json, private

if TYPE_CHECKING:
    from shoal.client.sync import Model


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    peers: Peers = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    model: Annotated[
        str | None, typer.Option(help="Hub id, directory or GGUF file; default: what the swarm serves.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text; no chat template.")] = False,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    lan: discovery.Lan = False,
    public: discovery.Public = False,
    swarm_name: discovery.SwarmName = None,
    dht_node: discovery.DhtNodes = None,
    relay: discovery.Relay = None,
    interface: discovery.Interface = "0.0.0.0",
    yes: discovery.Yes = False,
    save: Annotated[
        Path | None, typer.Option(help="Keep the reply in this file as it grows: `shoal resume` goes on with it.")
    ] = None,
    keep: Annotated[
        float, typer.Option(help="Seconds for which servers are asked to hold a saved reply's session.")
    ] = 300,
    transport: Transport = None,
    head: Head = "float32",
    as_json: AsJson = False,
) -> None:
    """Generate a reply through the swarm and stream it."""
    from shoal.client.sync import connect

    chosen = options.sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
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
    text = sys.stdin.read() if prompt == "-" else prompt
    with connect(
        model, peers=peers or (), invite=private(swarm, invite), transport=transport, discoveries=found, head=head
    ) as remote:
        print_reply(remote, remote.stream(text, raw=raw, save=save, keep_s=keep, **chosen), save, as_json)


def print_reply(model: Model, pieces: Iterator[str], kept: Path | None, as_json: bool) -> None:
    """Print a reply as it comes, and then its times; Ctrl-C ends the reply, not the program."""
    try:
        for piece in pieces:
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        console.print(f"\n(kept: shoal resume {kept})" if kept is not None else "\n(cancelled)", soft_wrap=True)
    if as_json:
        print_json(result(model))
    else:
        sys.stdout.write("\n")
        show_times(model)


def result(model: Model) -> dict[str, Any]:
    """A reply as JSON; times in seconds."""
    reply = model.last
    assert reply is not None
    return {
        "text": reply.text,
        "prompt_ids": reply.prompt_ids,
        "token_ids": reply.token_ids,
        "finish_reason": reply.finish_reason,
        "seed": reply.seed,
        "exact": reply.exact,
        "route": [
            {"peer": hop.peer, "name": name, "span": [hop.span.start, hop.span.stop]}
            for hop, name in zip(model.last_route, model.last_hop_names, strict=True)
        ],
        "prefill_tokens_per_s": reply.prefill_tokens_per_s,
        "decode_tokens_per_s": reply.decode_tokens_per_s,
        "heals": model.last_failovers[1:],
        "trace": reply.traces,
    }


def show_times(model: Model) -> None:
    """The route with each hop's median times, and the rates."""
    from statistics import median

    from rich.table import Table

    reply = model.last
    if reply is None:
        return
    traces = [trace for trace in reply.traces if tuple(hop.name for hop in trace.hops) == model.last_hop_names]
    if not traces:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("hop", "blocks", "network ms", "queue ms", "compute ms"):
        table.add_column(title, justify="left" if title == "hop" else "right")
    for index, (hop, name) in enumerate(zip(model.last_route, model.last_hop_names, strict=True)):
        times = [trace.hops[index] for trace in traces]
        middle = [1e3 * median(getattr(time, part) for time in times) for part in ("network_s", "queue_s", "compute_s")]
        table.add_row(name, str(hop.span), *(f"{value:.2f}" for value in middle))
    back = 1e3 * median(trace.return_s for trace in traces)
    table.add_row("back to here", "", f"{back:.2f}", "", "")
    console.print(table)
    console.print(
        f"prefill {reply.prefill_tokens_per_s:.1f} tokens/s · decode {reply.decode_tokens_per_s:.1f} tokens/s"
        f"{'' if reply.exact else ' · not exact'}"
    )
