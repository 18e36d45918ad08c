"""The `shoal` command. Little is imported before Ctrl-C is taken care of."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def make_app() -> typer.Typer:
    """All commands; each lives in a module of its own and imports what is heavy when it runs."""
    from shoal.cli import app

    return app.make_app()


def main() -> None:
    """Entry point. Until a command has something to tidy up (`interruptible`), Ctrl-C ends it at once.

    Libraries take a KeyboardInterrupt in the middle of their import for something else, and fail in ways of their own. What
    they do when the interpreter ends takes long too (torch: half a second and more), and no command needs it.
    """
    began = time.monotonic()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for what a script starts in the background
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from shoal.cli.output import INTERRUPTED, end_at_once_on_interrupt, leave, run_command

    end_at_once_on_interrupt()
    code = 0
    try:
        run_command(lambda: make_app()(), began)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:  # it came when all was done
        code = INTERRUPTED
    leave(code)


if __name__ == "__main__":
    main()
