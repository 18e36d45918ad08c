"""The application: every command has its place and its help."""

from __future__ import annotations

import io
import logging

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


def test_warnings_are_said_like_other_messages(said: io.StringIO) -> None:
    """On a line of their own, whatever the status line shows."""
    logger = logging.getLogger("shoal")
    before = list(logger.handlers), logger.level, logger.propagate
    try:
        make_app()
        logging.getLogger("shoal.model").warning("a device is of no use")
        logging.getLogger("shoal.model").info("nobody asked")
        assert said.getvalue().splitlines()[-1].endswith("warning: a device is of no use")
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
