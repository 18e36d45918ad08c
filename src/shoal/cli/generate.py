"""`shoal generate`: one reply."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from shoal.cli.connecting import ModelSource, connected
from shoal.cli.discovery_flags import Yes, client_discoveries
from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, Invite, SwarmName, print_json
from shoal.cli.terminal import FINISHING, ReplyText, say, say_table, waits_for
from shoal.cli.which_swarm import chosen_swarm
from shoal.client.client_options import ConnectOptions, ReplyOptions, SessionOptions
from shoal.errors import ShoalError, UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.options import check_text
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.swarm.routing.route_options import RouteOptions

if TYPE_CHECKING:
    from shoal.client.completion import Completion
    from shoal.client.step_trace import StepTrace
    from shoal.client.sync import CompletionStream

ANSWER = ReplyOptions(raw=False)


@with_option_flags("dht_port", "hello_port")
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    connection: ConnectOptions = ConnectOptions(),
    reply: ReplyOptions = ANSWER,
    sampling: SamplingParams = SamplingParams(),
    session: SessionOptions = SessionOptions(),
    route: RouteOptions = RouteOptions(),
    discovery: DiscoveryOptions = DiscoveryOptions(),
    *,
    model: ModelSource = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Generate a reply through the swarm and stream it."""
    if prompt == "-":
        waits_for("reading the prompt from standard input")
    text = sys.stdin.read() if prompt == "-" else prompt
    check_text("the prompt", text)
    if not (text if reply.raw else text.strip()):
        raise UsageError("the prompt is empty")
    if reply.save is not None:
        from shoal.client.saved_reply import place_for_reply

        place_for_reply(reply.save)
    found = client_discoveries(model, discovery, yes)
    chosen = chosen_swarm(connection.peers, swarm, invite, found is not None)
    asked = {**msgspec.structs.asdict(reply), **msgspec.structs.asdict(sampling)}
    asked["options"] = msgspec.structs.replace(session, route=route)
    with connected(model, connection, chosen, found) as remote:
        print_reply(remote.stream(text, **asked), reply.save, as_json, swarm)


def print_reply(stream: CompletionStream, kept: Path | None, as_json: bool, swarm: str = "") -> None:
    """Print a reply as it comes, and then its times. Ctrl-C ends it, and the command with what there is by then.

    What else ends it is raised; a reply that is kept can be gone on with, and the error says how.
    """
    interrupted: KeyboardInterrupt | None = None
    text = ReplyText()
    try:
        for piece in stream:
            if not as_json:
                text.write(piece)
    except KeyboardInterrupt as error:
        interrupted = error
    except ShoalError as error:
        waits_for(FINISHING)
        text.end()
        if kept is not None and kept.exists():
            error.add_note(f"the reply so far is kept: {_go_on(kept, swarm)}")
        raise
    waits_for(FINISHING)
    if as_json:
        print_json(result(stream.completion))
    else:
        text.end(always=interrupted is None)
    if interrupted is not None:
        say("(cancelled)" if kept is None else f"(kept: {_go_on(kept, swarm)})", whole=True)
    if not as_json:
        show_times(stream.completion)
    if interrupted is not None:
        raise interrupted


def _go_on(kept: Path, swarm: str) -> str:
    where = f" --swarm {swarm}" if swarm else ""
    return f"shoal resume {shlex.quote(str(kept))}{where}"


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
    """The route with each hop's median times, the rates, and the seed by which the reply can be had again."""
    names = [hop.name for hop in reply.route]
    traces = [trace for trace in reply.traces if [hop.name for hop in trace.hops] == names]
    if traces:
        _show_hops(reply, traces)
    rates = (("prefill", reply.timings.prefill_tokens_per_s), ("decode", reply.timings.decode_tokens_per_s))
    said = [f"{what} {rate:.1f} tokens/s" for what, rate in rates if rate]
    say(" · ".join([*said, f"seed {reply.seed}", *([] if reply.exact else ["not exact"])]))


def _show_hops(reply: Completion, traces: Sequence[StepTrace]) -> None:
    from statistics import median

    rows = []
    for index, hop in enumerate(reply.route):
        times = [trace.hops[index] for trace in traces]
        middle = [1e3 * median(getattr(time, part) for time in times) for part in ("network_s", "queue_s", "compute_s")]
        rows.append((hop.name, str(hop.span), *(f"{value:.2f}" for value in middle)))
    back = 1e3 * median(trace.return_s for trace in traces)
    rows.append(("back to here", "", f"{back:.2f}", "", ""))
    say_table(("hop", "blocks", "network ms", "queue ms", "compute ms"), rows)
