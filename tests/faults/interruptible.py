"""A client that is interrupted at any moment: `command` ARGUMENTS of `shoal`, or `stream` MODEL TICKET TOKENS in Python.

It writes one byte to the file descriptor in $MARK when the first line of its `main` is about to run.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130
RETURNED = "the end of main"


def mark() -> None:
    """From here on it may be interrupted."""
    os.write(int(os.environ["MARK"]), b"!")


def command(*arguments: str) -> None:
    """The command line, as its entry point calls it."""
    from shoal.cli.main import main

    sys.argv[1:] = arguments
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # until `main` has its own, which is its first line
    mark()
    try:
        main()
    except SystemExit as end:
        if not end.code:
            print(RETURNED, flush=True)
        raise


def stream(model: str, ticket: str, tokens: str) -> None:
    """A user's program, which catches KeyboardInterrupt and nothing else."""
    try:
        mark()
        import shoal

        with shoal.connect(model, peers=[ticket], transport="tls") as remote:
            for piece in remote.stream("the sea", max_tokens=int(tokens), ignore_eos=True):
                print(ascii(piece)[1:-1], end="", flush=True)
        print(RETURNED, flush=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    if sys.argv[1] == "command":
        command(*sys.argv[2:])
    else:
        stream(*sys.argv[2:])
