"""The `shoal` command."""

from __future__ import annotations

import typer

from shoal.cli.output import run_command


def make_app() -> typer.Typer:
    """All commands; each lives in a module of its own and imports what is heavy when it runs."""
    from shoal.cli import chat, demo, drain, generate, resume, serve, status, swarm

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
    app.add_typer(swarm.make_app(), name="swarm")
    app.command("demo")(demo.demo)
    return app


def main() -> None:
    """Entry point."""
    run_command(make_app())


if __name__ == "__main__":
    main()
