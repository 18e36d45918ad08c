"""`shoal generate`: one reply."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import discovery_flags as discovery
from shoal.cli import sampling_flags as options
from shoal.cli.output import AsJson, Head, Invite, Peers, SwarmName, Transport, console, print_json, private

if TYPE_CHECKING:
    from shoal.client.completion import Completion
    from shoal.client.sync import CompletionStream


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
        print_reply(remote.stream(text, raw=raw, save=save, keep_s=keep, **chosen), save, as_json)


def print_reply(stream: CompletionStream, kept: Path | None, as_json: bool) -> None:
    """Print a reply as it comes, and then its times; Ctrl-C ends it, and the command with what there is by then."""
    interrupted: KeyboardInterrupt | None = None
    try:
        for piece in stream:
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt as error:
        interrupted = error
        console.print(f"\n(kept: shoal resume {kept})" if kept is not None else "\n(cancelled)", soft_wrap=True)
    if as_json:
        print_json(result(stream.completion))
    else:
        sys.stdout.write("\n")
        show_times(stream.completion)
    if interrupted is not None:
        raise interrupted


def result(reply: Completion) -> dict[str, Any]:
    """A reply as JSON; times in seconds."""
    return {
        "text": reply.text,
        "prompt_ids": reply.prompt_ids,
        "token_ids": reply.token_ids,
        "finish_reason": reply.finish_reason,
        "seed": reply.seed,
        "exact": reply.exact,
        "route": [{"peer": hop.peer, "name": hop.name, "span": [hop.span.start, hop.span.stop]} for hop in reply.route],
        "prefill_tokens_per_s": reply.timings.prefill_tokens_per_s,
        "decode_tokens_per_s": reply.timings.decode_tokens_per_s,
        "heals": reply.failovers,
        "trace": reply.traces,
    }


def show_times(reply: Completion) -> None:
    """The route with each hop's median times, and the rates."""
    from statistics import median

    from rich.table import Table

    names = [hop.name for hop in reply.route]
    traces = [trace for trace in reply.traces if [hop.name for hop in trace.hops] == names]
    if not traces:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("hop", "blocks", "network ms", "queue ms", "compute ms"):
        table.add_column(title, justify="left" if title == "hop" else "right")
    for index, hop in enumerate(reply.route):
        times = [trace.hops[index] for trace in traces]
        middle = [1e3 * median(getattr(time, part) for time in times) for part in ("network_s", "queue_s", "compute_s")]
        table.add_row(hop.name, str(hop.span), *(f"{value:.2f}" for value in middle))
    back = 1e3 * median(trace.return_s for trace in traces)
    table.add_row("back to here", "", f"{back:.2f}", "", "")
    console.print(table)
    console.print(
        f"prefill {reply.timings.prefill_tokens_per_s:.1f} tokens/s · "
        f"decode {reply.timings.decode_tokens_per_s:.1f} tokens/s{'' if reply.exact else ' · not exact'}"
    )
