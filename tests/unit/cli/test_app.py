"""The application: every command has its place and its help."""

from __future__ import annotations

from typer.testing import CliRunner

from shoal.cli.app import make_app


def test_every_command_has_help() -> None:
    """And is named where the whole is shown, beside shell completion."""
    shown = CliRunner().invoke(make_app(), ["--help"]).output
    for name in (
        "serve",
        "join",
        "generate",
        "resume",
        "chat",
        "status",
        "drain",
        "demo",
        "swarm",
        "--install-completion",
    ):
        assert name in shown
