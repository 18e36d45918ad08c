"""What all commands share: JSON, options, errors as one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shoal.cli.json_text import json_line
from shoal.cli.log_lines import show_warnings
from shoal.cli.terminal import ReaderGone, say, styled, waiting, waits_for, write
from shoal.errors import ServerFull, ShoalError, UsageError
from shoal.model.kernels.strict import strict_mode_environment

if TYPE_CHECKING:
    from shoal.swarm.membership.storage import PrivateSwarm

DEBUG = "--debug"
INTERRUPTED = 130
BROKEN_PIPE = 141

SwarmName = Annotated[
    str, typer.Option("--swarm", help="A swarm that this machine remembers or, if private, belongs to, by its name.")
]
Invite = Annotated[
    str, typer.Option("--invite", envvar="SHOAL_INVITE", help="An invite to a private swarm; needed once.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Transport = Annotated[str | None, typer.Option(help="Use only this transport: tls or iroh.")]


def private(swarm: str, invite: str, delegation: str = "") -> PrivateSwarm | None:
    """The private swarm that a command's options mean, if they mean one."""
    from shoal.swarm.membership.storage import PrivateSwarm

    if not (swarm or invite or delegation):
        return None
    return PrivateSwarm(name=swarm, invite=invite, delegation=delegation)


def print_json(value: Any) -> None:
    """One JSON document, on a line of its own; fields at their defaults are not left out."""
    write(json_line(value) + "\n")


def report(error: ShoalError) -> None:
    """Say what was wrong and, where it was not the user's own mistake, who has to act."""
    party = "" if isinstance(error, UsageError) else f" ({error.party})"
    say(styled("error", "bold red"), f"{party}: {error}")
    if isinstance(error, ServerFull):
        say(f"try again in {error.retry_after:.0f} s")
    for note in getattr(error, "__notes__", ()):
        say(note, whole=True)


def report_mistake(error: Exception) -> None:
    """Say that something failed which has no error of ours: in one line, with where its trace is to be had."""
    if isinstance(error, OSError):  # a full disk, a limit on files
        say(styled("error", "bold red"), f": {error}")
        return
    words = " ".join(str(error).split())
    say(styled("error", "bold red"), f" (a mistake in Shoal): {type(error).__name__}: {words}")
    if not debug_wanted():
        say(f"{DEBUG} shows where")


def debug_wanted() -> bool:
    """Whether the command line asks for the trace of an error."""
    arguments = sys.argv[1:]
    return DEBUG in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def run_command(command: Callable[[], object], since: float | None = None) -> None:
    """Run a command line: strict arithmetic is asked for before anything imports torch, any error becomes one line.

    `since`: when the user began to wait, by the monotonic clock; now, if None.

    Ends the process with code 1 after an error, 130 after Ctrl-C, 141 when nobody reads its output any more: codes that a
    shell gives to what SIGINT and SIGPIPE have ended.
    """
    strict_mode_environment()
    _open_what_is_closed()
    _take_any_text()
    show_warnings()
    waits_for("starting")
    waiting.start(since)
    try:
        command()
    except (BrokenPipeError, ReaderGone):
        leave(BROKEN_PIPE)
    except KeyboardInterrupt:
        leave(INTERRUPTED)
    except Exception as group:
        error = _first(group)
        if debug_wanted():
            say("".join(traceback.format_exception(error)).rstrip())
        if isinstance(error, ShoalError):
            report(error)
        else:
            report_mistake(error)
        sys.exit(1)
    except SystemExit as exit_:
        if exit_.code == INTERRUPTED:
            leave(INTERRUPTED)
        raise
    finally:
        waiting.stop()


def _open_what_is_closed() -> None:
    """Python has no stream for a descriptor that is closed: one that says and takes nothing stands there instead."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process


def _take_any_text() -> None:
    """Bytes that are not UTF-8 are read as Python reads them in arguments; what a terminal cannot show is written escaped."""
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def _first(error: Exception) -> Exception:
    """What a group of errors began with."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def end_at_once_on_interrupt() -> None:
    """Ctrl-C ends the process, as long as nothing has to be tidied up: nobody was contacted, no file was begun."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: leave(INTERRUPTED))


def interruptible() -> None:
    """From now on Ctrl-C is raised as KeyboardInterrupt. Call it when all that takes long to import is there."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(code: int) -> NoReturn:
    """End at once: threads that still read files are not waited for, nor what libraries do at the end."""
    waiting.stop()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, RuntimeError):  # RuntimeError: it was just being written to
            stream.flush()
    os._exit(code)
