"""The `shoal` command. Little is imported before Ctrl-C is taken care of."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def make_app() -> typer.Typer:
    """All commands; each lives in a module of its own and imports what is heavy when it runs."""
    from shoal.cli import app

    return app.make_app()


def run() -> None:
    """The command that the arguments name. No warning is written over its status line; `serve` says what it logs."""
    from shoal.cli.logs import set_up_logging

    set_up_logging("warning", "text")
    make_app()()


def main() -> None:
    """Entry point. Until a command has something to tidy up (`interruptible`), Ctrl-C ends it at once.

    Libraries take a KeyboardInterrupt in the middle of their import for something else, and fail in ways of their own.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for what a script starts in the background
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from shoal.cli.output import end_at_once_on_interrupt, run_command

    end_at_once_on_interrupt()
    try:
        run_command(run)
    finally:
        end_at_once_on_interrupt()  # what is left are threads that nobody waits for


if __name__ == "__main__":
    main()
