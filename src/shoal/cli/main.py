"""The `shoal` command. Little is imported before Ctrl-C is taken care of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def make_app() -> typer.Typer:
    """All commands; each lives in a module of its own and imports what is heavy when it runs."""
    from shoal.cli import app

    return app.make_app()


def main() -> None:
    """Entry point."""
    try:
        from shoal.cli.output import run_command
    except KeyboardInterrupt:
        os._exit(130)
    run_command(lambda: make_app()())


if __name__ == "__main__":
    main()
