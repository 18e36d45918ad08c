"""All commands of `shoal`, as one application."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.option_flags import Debug, with_debug
from shoal.cli.terminal import write

CONTEXT = {"help_option_names": ["-h", "--help"]}


def make_app() -> typer.Typer:
    """All commands; each lives in a module of its own and imports what is heavy when it runs."""
    from shoal.cli import chat, demo, drain, generate, join, quantize, resume, serve, status, swarm

    app = typer.Typer(
        name="shoal",
        help="Run language models that no single machine can hold, on a swarm of peers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )
    app.callback()(_root)
    for command in (
        serve.serve,
        join.join,
        generate.generate,
        resume.resume,
        chat.chat,
        status.status,
        drain.drain,
        demo.demo,
        quantize.quantize,
    ):
        app.command(command.__name__)(with_debug(command))
    app.add_typer(swarm.make_app(), name="swarm")
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        write(f"shoal {version('shoal')}\n")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    """What stands before a command."""
