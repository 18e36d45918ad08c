"""`shoal serve`: hold blocks for others."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from shoal.cli.discovery_flags import Yes, agree
from shoal.cli.logs import LogFormat, set_up_logging
from shoal.cli.option_flags import with_option_flags
from shoal.cli.output import AsJson, Invite, SwarmName, print_json, private
from shoal.cli.terminal import console, counted, say, styled, waits_for, write
from shoal.errors import UsageError
from shoal.server.serve_options import ServeOptions, machine_memory_bytes
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.tasks import first_done
from shoal.transport.address import host_port, node_address, numeric

if TYPE_CHECKING:
    from shoal.protocol.messages import Status
    from shoal.server.hosting.span_host import Progress
    from shoal.server.server import Server
    from shoal.server.server_place import ServerPlace
    from shoal.swarm.membership.storage import PrivateSwarm

STATUS_S = 2.0
FORCED_EXIT_S = 10.0


@with_option_flags("interface")
def serve(
    model: Annotated[str, typer.Argument(help="Hub id, directory of safetensors, or GGUF file.")],
    options: ServeOptions = ServeOptions(model=""),
    discovery: DiscoveryOptions = DiscoveryOptions(),
    *,
    peers: Annotated[
        list[str] | None, typer.Option(envvar="SHOAL_PEERS", help="Ticket of a member to join; may be repeated.")
    ] = None,
    swarm: SwarmName = "",
    invite: Invite = "",
    delegation: Annotated[
        str, typer.Option(help="From the private swarm's owner: redeem invites and renew certificates here.")
    ] = "",
    yes: Yes = False,
    as_json: AsJson = False,
    log_level: Annotated[str, typer.Option(help="What is logged: debug, info, warning or error.")] = "info",
    log_format: Annotated[LogFormat, typer.Option(help="Log lines as text or json.")] = "text",
    temporary: Annotated[
        bool, typer.Option("--temporary", help="Keep nothing: a fresh key and a free port, unless they are given.")
    ] = False,
    watch_stdin: Annotated[bool, typer.Option(hidden=True, help="Leave when standard input ends.")] = False,
) -> None:
    """Hold blocks of a model and compute them for others. Prints the ticket by which others join.

    Ctrl-C lets the sessions move to other servers, then leaves; a second Ctrl-C leaves at once.
    """
    interface = host_port(numeric(options.listen))[0]  # where it cannot listen it need not begin
    if discovery.wanted:
        discovery = msgspec.structs.replace(discovery, interface=interface)
    set_up_logging(log_level, log_format)
    if options.memory_bytes is not None and options.device == "cpu":
        _check_memory(options.memory_bytes)
    if as_json:
        waits_for("")  # its events say it
    agree(discovery, yes, serving=True)
    members, joined = _swarm_to_join(tuple(peers or ()), swarm, invite, delegation)
    asked = msgspec.structs.replace(options, model=model, peers=members, private=joined, discovery=discovery)
    if temporary:
        asyncio.run(_serve(asked, as_json, watch_stdin))
        return
    from shoal.server.server_place import ServerPlace

    with ServerPlace(asked) as place:
        asyncio.run(_serve(place.options, as_json, watch_stdin, place))


def _swarm_to_join(
    peers: tuple[str, ...], swarm: str, invite: str, delegation: str
) -> tuple[tuple[str, ...], PrivateSwarm | None]:
    """Tickets of members, and the private swarm if it is one; a server that is told none begins a swarm of its own."""
    from shoal.swarm.discovery.address_book import AddressBook

    if swarm and not (invite or delegation) and (tickets := AddressBook().tickets(swarm)):
        return peers or tickets, None
    return peers, private(swarm, invite, delegation)


def _check_memory(asked_bytes: int) -> None:
    """Raises UsageError for more than the machine has: the system would end the server in the middle of its work."""
    there = machine_memory_bytes()
    if there is not None and asked_bytes > there:
        raise UsageError(
            f"--memory cannot be {asked_bytes / 1e9:.3g}GB: this machine has {there / 1e9:.3g}GB", field="memory_bytes"
        )


async def _serve(config: ServeOptions, as_json: bool, watch_stdin: bool, place: ServerPlace | None = None) -> None:
    from shoal.server.server import Server

    stop, at_once = asyncio.Event(), asyncio.Event()
    _stop_on_signals(stop, at_once)
    if watch_stdin:
        _stop_at_end_of_input(stop, at_once)
    started = asyncio.Event()

    async def run() -> None:
        async with Server(config, _progress(as_json)) as server:
            started.set()
            if place is not None:
                place.keep_port(server.addresses)
            await _run(server, stop, as_json, kept=place is not None)
            await _drain(server, at_once)

    async def stopped_while_starting() -> None:
        await stop.wait()
        if started.is_set():
            await asyncio.Event().wait()  # the server itself looks at `stop`

    await first_done(run(), stopped_while_starting())


async def _run(server: Server, stop: asyncio.Event, as_json: bool, kept: bool = False) -> None:
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
        say(f"serving  {record.model.name}, blocks {record.span} of {record.model.num_blocks}")
        say(f"address  {', '.join(server.addresses)}")
        say(f"node     {record.peer}")
        for line in _how_to_join(server, kept):
            say(line)
        write(server.ticket + "\n")
    waits_for("")
    while not stop.is_set() and not server.ordered_to_leave.is_set():
        if console.is_terminal and not as_json:
            waits_for(_load(server.status()), timed=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_S):
                await first_done(stop.wait(), server.ordered_to_leave.wait())


def _load(status: Status) -> str:
    """A server's load in a line; a rate that was not measured yet is not told."""
    rate = f" · {status.decode_rows_per_s:.3g} rows/s" if status.decode_rows_per_s else ""
    return (
        f"{counted(status.sessions, 'session')} · {counted(status.queued_rows, 'row')} waiting · "
        f"{status.free_tokens:,} of {status.total_tokens:,} tokens free{rate}"
    )


def _how_to_join(server: Server, kept: bool) -> list[str]:
    """Who can use the ticket, and for how long."""
    name = server.private_swarm
    use = f"for members of {name} (shoal swarm invite {name}, on the owner's machine)" if name else "for --peers"
    until = "after a restart too: key and port are kept" if kept else "until this server stops"
    return [f"ticket   {use}, {_who_reaches(server.addresses)}", f"         good {until}"]


def _who_reaches(addresses: Sequence[str]) -> str:
    """From where these addresses can be dialled, as far as they tell."""
    hosts = []
    for address in addresses:
        with contextlib.suppress(UsageError):
            one = node_address(address)
            if not one.relay:
                hosts.append(ipaddress.ip_address(one.host))
    if any(host.is_global for host in hosts):
        return "from anywhere, unless a firewall or a router is in between"
    if any(not host.is_loopback for host in hosts):
        return "from this network"
    return "on this machine alone (for others: --listen 0.0.0.0:PORT)"


async def _drain(server: Server, at_once: asyncio.Event) -> None:
    """Let the sessions move, unless there is no time for that."""
    if at_once.is_set():
        return
    waits_for("leaving the swarm")
    if alone := server.blocks_only_here:
        spans = ", ".join(map(str, alone))
        say(styled("warning", "bold yellow"), f": no other server has blocks {spans}; nobody can use the model then")
    if len(server.sessions):
        moving = counted(len(server.sessions), "session")
        say(f"leaving: {moving} to move to other servers (Ctrl-C again: leave at once)")
        waits_for(lambda: f"waiting for {counted(len(server.sessions), 'session')} to move")
    ended, left = await first_done(server.drain(), at_once.wait())
    waits_for("leaving the swarm")
    if ended == 0 and left:
        say(f"{counted(left, 'session')} found no other server in time")


def _progress(as_json: bool) -> Progress:
    def show(what: str, done: int, total: int) -> None:
        if as_json:
            print_json({"event": "loading", "what": what, "done": done, "total": total})
        elif done < total:
            waits_for(f"{what} {done}/{total}")
        else:
            say(f"{what} {done}/{total}" if total else what)
            waits_for("starting to serve" if total else what)

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
