"""The `shoal` command."""

from __future__ import annotations

import sys

import typer

from shoal.kernels.strict import strict_mode_environment


def make_app() -> typer.Typer:
    """All commands; each lives in a module of its own and imports what is heavy when it runs."""
    from shoal.cli import bench, chat, demo, drain, generate, resume, serve, simulate, status, swarm_admin

    app = typer.Typer(
        name="shoal",
        help="Run language models that no single machine can hold, on a swarm of peers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.command("serve")(serve.serve)
    app.command("generate")(generate.generate)
    app.command("resume")(resume.resume)
    app.command("chat")(chat.chat)
    app.command("status")(status.status)
    app.command("drain")(drain.drain)
    app.add_typer(swarm_admin.make_app(), name="swarm")
    app.command("demo")(demo.demo)
    app.command("simulate")(simulate.simulate)
    app.command("bench")(bench.bench)
    return app


def main() -> None:
    """Entry point: strict arithmetic is asked for before anything imports torch; errors become one line and exit code 1."""
    strict_mode_environment()
    from shoal.cli.output import report
    from shoal.errors import ShoalError

    try:
        make_app()(standalone_mode=True)
    except ShoalError as error:
        report(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
