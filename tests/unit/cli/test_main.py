"""The command as a whole: what its start imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from shoal.cli.main import make_app
from shoal.swarm.discovery.ticket import Ticket
from shoal.swarm.identity import Identity

HEAVY = {"torch", "transformers", "huggingface_hub", "gguf", "jinja2"}


@pytest.mark.parametrize(
    "program",
    [
        "import shoal.cli.main; shoal.cli.main.make_app()",
        "import shoal.client.client, shoal.transport.iroh_transport",
    ],
    ids=["help", "status"],
)
def test_a_command_imports_what_it_uses(program: str) -> None:
    """`shoal --help` and `shoal status` load nothing that takes long."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert not HEAVY & set(shown.stdout.split())


@pytest.mark.parametrize("command", [["--version"], ["-h"], ["serve", "-h"], ["swarm", "invite", "--help"]])
def test_what_every_program_has(command: list[str]) -> None:
    """A version, and help by its short name too."""
    shown = CliRunner().invoke(make_app(), command)
    assert shown.exit_code == 0
    assert shown.output.startswith("shoal 0") or "Usage" in shown.output


@pytest.mark.parametrize("command", ["serve", "generate", "resume", "chat", "status", "drain", "demo"])
def test_every_command_shows_traces(command: str) -> None:
    """`--debug` may stand behind each."""
    assert "--debug" in CliRunner().invoke(make_app(), [command, "--help"]).output


TICKET = str(Ticket(Identity.generate().peer, ("tls://127.0.0.1:1",)))
MODULES = ("typer", "shoal.cli.app", "shoal.cli.swarm", "shoal.client.sync", "numpy", "torch")


@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_while_something_is_imported(module: str) -> None:
    """From the first line on: no trace, nothing else said, and the code of what Ctrl-C has ended.

    Also inside libraries whose import is not to be interrupted.
    """
    program = f"""
import importlib.abc, os, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
from shoal.cli.main import main
sys.meta_path.insert(0, Interrupt())
sys.argv = ["shoal", "generate", "the sea", "--peers", {TICKET!r}]
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr.replace("starting\n", "")) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--version"], 0), (["status", "--peers", "no-ticket"], 1), (["oops"], 2)]
)
def test_a_command_that_is_done_ends_at_once(arguments: list[str], code: int) -> None:
    """Nobody waits for threads and libraries that tidy up when all has been said, and nothing that was said is lost."""
    program = f"""
import atexit, sys, threading, time
from shoal.cli.main import main
threading.Thread(target=time.sleep, args=(300,)).start()
atexit.register(lambda: print("late"))
sys.argv = ["shoal", *{arguments!r}]
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert "late" not in ended.stdout
    assert ended.stdout.startswith("shoal ") if code == 0 else ended.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["generate -", "chat", "status"])
def test_streams_that_are_closed(command: str, closed: str) -> None:
    """As some starters of programs leave them: nothing is read there, nothing is said there, nothing else is wrong."""
    line = f"{sys.executable} -m shoal.cli.main {command} --peers {TICKET} --transport tls {closed}"
    ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "mistake" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ("error" in ended.stderr) == ("2>&-" not in closed)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_contacts_nobody(prompt: str) -> None:
    """Whether it is given or read."""
    for given, said in ((prompt, ""), ("-", prompt)):
        ended = subprocess.run(
            [sys.executable, "-m", "shoal.cli.main", "generate", given, "--peers", TICKET],
            input=said,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "error: the prompt is empty")


def test_warnings_are_said_like_other_messages() -> None:
    """On a line of their own, whatever the status line shows; what is only informative is not said."""
    program = """
import logging
from shoal.cli.output import run_command
def command():
    logging.getLogger("shoal.model").info("all is well")
    logging.getLogger("shoal.model").warning("a device is of no use")
run_command(command)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=60)
    assert done.stderr.rstrip().endswith("warning: a device is of no use")
    assert len(done.stderr.splitlines()) == 1
