"""`shoal serve`: hold blocks for others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import discovery_flags as discovery
from shoal.cli.logs import LogFormat, set_up_logging
from shoal.cli.output import AsJson, Invite, SwarmName, Transport, console, megabytes, print_json, private
from shoal.tasks import first_done
from shoal.transport.address import host_port
from shoal.types import Span

if TYPE_CHECKING:
    from shoal.server.hosting.span_host import Progress
    from shoal.server.server import Server
    from shoal.server.server_config import ServerConfig

STATUS_S = 2.0
FORCED_EXIT_S = 10.0


def serve(
    model: Annotated[str, typer.Argument(help="Hub id, directory of safetensors, or GGUF file.")],
    blocks: Annotated[str | None, typer.Option(help="Blocks to hold, START:STOP.")] = None,
    num_blocks: Annotated[int | None, typer.Option(help="How many blocks; the swarm's weakest are chosen.")] = None,
    fetch_ahead: Annotated[
        int,
        typer.Option(help="Blocks to have on disk, fetched while the line is idle, in a swarm of 17 to 128 servers."),
    ] = 0,
    peers: Annotated[list[str] | None, typer.Option(help="Ticket of a member to join; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="What people call this server.")] = "",
    memory: Annotated[str | None, typer.Option(help="Memory to use, like 6GB; default half of the machine's.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Weights are kept as float32, bfloat16, float16, or (auto) as the checkpoint has them.")
    ] = "auto",
    quantize: Annotated[int | None, typer.Option(help="Round weights to 8 or 4 bits while loading.")] = None,
    int8_rows: Annotated[
        bool, typer.Option(help="With --quantize: round hidden states to 8 bits too, row by row; faster, less precise.")
    ] = False,
    kv_dtype: Annotated[
        str, typer.Option(help="Keys and values are kept as float32, bfloat16, float16, int8 or int4.")
    ] = "float32",
    share_prefixes: Annotated[
        bool, typer.Option(help="What one client's prompt began with may be found by another's. Hits can be timed.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps; only cpu has been tried.")] = "cpu",
    exact: Annotated[
        bool, typer.Option(help="Refuse to start unless rows are exact; on a GPU: slower arithmetic that may be.")
    ] = False,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; 0.0.0.0 for all, port 0 for a free one.")
    ] = "127.0.0.1:0",
    max_upload: Annotated[float | None, typer.Option(help="Limit on sending, in Mbit/s.")] = None,
    max_sessions: Annotated[int, typer.Option(help="Sessions at once.")] = 64,
    identity: Annotated[
        Path | None, typer.Option(help="Key file, made if missing; default: a fresh key each time.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    delegation: Annotated[
        str, typer.Option(help="From the private swarm's owner: redeem invites and renew certificates here.")
    ] = "",
    lan: discovery.Lan = False,
    public: discovery.Public = False,
    swarm_name: discovery.SwarmName = None,
    dht_node: discovery.DhtNodes = None,
    relay: discovery.Relay = None,
    dht_port: Annotated[int, typer.Option(help="UDP port of the DHT node; default: a free one.")] = 0,
    hello_port: Annotated[int, typer.Option(help="TCP port that tells who this is; default: a free one.")] = 0,
    yes: discovery.Yes = False,
    transport: Transport = None,
    as_json: AsJson = False,
    log_level: Annotated[str, typer.Option(help="What is logged: debug, info, warning or error.")] = "info",
    log_format: Annotated[LogFormat, typer.Option(help="Log lines as text or json.")] = "text",
    watch_stdin: Annotated[bool, typer.Option(hidden=True, help="Leave when standard input ends.")] = False,
) -> None:
    """Hold blocks of a model and compute them for whoever asks. Prints the ticket by which others join.

    Ctrl-C lets the sessions move to other servers, then leaves; a second Ctrl-C leaves at once.
    """
    from shoal.server.server_config import ServerConfig
    from shoal.swarm.discovery.discovery_options import DiscoveryOptions

    found = DiscoveryOptions(
        lan=lan,
        public=public,
        swarm_name=swarm_name,
        dht_nodes=tuple(dht_node or ()),
        dht_port=dht_port,
        relay=relay,
        hello_port=hello_port,
        interface=host_port(listen)[0] if lan or public else "0.0.0.0",
    )
    config = ServerConfig(
        model=model,
        revision=revision,
        blocks=Span.parse(blocks) if blocks is not None else None,
        num_blocks=num_blocks,
        fetch_ahead=fetch_ahead,
        peers=tuple(peers or ()),
        name=name,
        memory_bytes=megabytes(memory) if memory is not None else None,
        threads=threads,
        dtype=dtype,
        quantize=quantize,
        int8_rows=int8_rows,
        kv_dtype=kv_dtype,
        share_prefixes=share_prefixes,
        device=device,
        exact=exact,
        listen=listen,
        transport=transport,
        max_upload_bits_per_s=max_upload * 1e6 if max_upload is not None else None,
        max_sessions=max_sessions,
        identity=identity,
        private=private(swarm, invite, delegation),
        discovery=found,
    )
    set_up_logging(log_level, log_format)
    discovery.agree(found, yes, serving=True)
    asyncio.run(_serve(config, as_json, watch_stdin))


async def _serve(config: ServerConfig, as_json: bool, watch_stdin: bool) -> None:
    from shoal.server.server import Server

    stop, at_once = asyncio.Event(), asyncio.Event()
    _stop_on_signals(stop, at_once)
    if watch_stdin:
        _stop_at_end_of_input(stop, at_once)
    started = asyncio.Event()

    async def run() -> None:
        async with Server(config, _progress(as_json)) as server:
            started.set()
            await _run(server, stop, as_json)
            await _drain(server, at_once)
        console.print("left the swarm")

    async def stopped_while_starting() -> None:
        await stop.wait()
        if started.is_set():
            await asyncio.Event().wait()  # the server itself looks at `stop`

    await first_done(run(), stopped_while_starting())


async def _run(server: Server, stop: asyncio.Event, as_json: bool) -> None:
    record = server.record
    if as_json:
        print_json(
            {
                "event": "ready",
                "ticket": server.ticket,
                "peer": record.peer,
                "span": [record.span.start, record.span.stop],
            }
        )
    else:
        console.print(
            f"serving  {record.model.name}, blocks {record.span} of {record.model.num_blocks}", soft_wrap=True
        )
        console.print(f"address  {', '.join(server.addresses)}", soft_wrap=True)
        console.print(f"node     {record.peer}", soft_wrap=True)
        console.print(_how_to_join(server), soft_wrap=True)
        print(server.ticket, flush=True)
    with console.status("waiting for sessions") as line:
        while not stop.is_set() and not server.ordered_to_leave.is_set():
            status = server.status()
            line.update(
                f"{status.sessions} sessions · {status.queued_rows} rows waiting · "
                f"{status.free_tokens:,} of {status.total_tokens:,} tokens free · {status.decode_rows_per_s:.0f} rows/s"
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_S):
                    await first_done(stop.wait(), server.ordered_to_leave.wait())


def _how_to_join(server: Server) -> str:
    name = server.private_swarm
    if name is None:
        return "ticket   (give it to others as --peers)"
    return f"ticket   (of no use to others without an invite: shoal swarm invite {name}, on the owner's machine)"


async def _drain(server: Server, at_once: asyncio.Event) -> None:
    """Let the sessions move, unless there is no time for that."""
    if at_once.is_set():
        return
    if len(server.sessions):
        console.print(f"leaving: {len(server.sessions)} sessions move to other servers (Ctrl-C again: leave at once)")
    ended, left = await first_done(server.drain(), at_once.wait())
    if ended == 0 and left:
        console.print(f"{left} sessions found no other server in time")


def _progress(as_json: bool) -> Progress:
    def show(what: str, done: int, total: int) -> None:
        if as_json:
            print_json({"event": "loading", "what": what, "done": done, "total": total})
        elif total:
            console.print(f"{what} {done}/{total}", end="\r" if done < total else "\n")
        else:
            console.print(what, soft_wrap=True)

    return show


def _stop_on_signals(stop: asyncio.Event, at_once: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if stop.is_set():
            at_once.set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, asked)
        except NotImplementedError:  # Windows: Ctrl-C arrives as KeyboardInterrupt
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(asked))


def _stop_at_end_of_input(stop: asyncio.Event, at_once: asyncio.Event) -> None:
    """Whoever started this server holds the other end of its standard input: when that process is gone, so is this."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock must be free when the interpreter ends
            continue
        loop.call_soon_threadsafe(at_once.set)
        loop.call_soon_threadsafe(stop.set)
        threading.Timer(FORCED_EXIT_S, lambda: os._exit(1)).start()

    threading.Thread(target=watch, name="shoal-parent", daemon=True).start()
