"""`python -m bench first-day`: a new user's first day in terminals of 80 columns, and whether a command was ever silent.

What the terminals show becomes docs/guides/first-day.md (`--write`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.prompt_text import TOPICS
from bench.report import commit, hardware
from bench.tmux import COLUMNS, Terminals, Window
from shoal.model.weights.model_source import demo_model_path

SILENCE_S = 1.0
"""How long a command that works may show nothing new."""

MODEL = "smollm2.gguf"
SERVES = r"tokens free"
"""What a server's terminal says from when on it serves."""

SHELL = {"LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}
LONG_CHARACTERS = 22_000
ASKS = r"^>\Z"
WORDS = r"\$ shoal generate .*\n(?:\s*\S+){30}"
"""A reply is under way."""

STORY = '"Tell me a story about the sea."'
ROOT = Path(__file__).parent.parent

HEAD = (
    "This is what a new user sees: terminals of {columns} columns on one machine, all in one folder that holds the model's "
    "file. `python -m bench first-day --write docs/guides/first-day.md` plays the day, copies the screens into this page and "
    "measures that no command is silent for more than a second. Tickets, folders, times and what is said differ from day to "
    "day."
)
PAGE_WIDTH = 120


class Page:
    """The page as it grows, and how long each scene was silent."""

    def __init__(self) -> None:
        self._parts = ["# A first day\n"]
        self.silences: dict[str, dict[str, Any]] = {}
        self.tell(HEAD.format(columns=COLUMNS))

    def begin(self, title: str, text: str) -> None:
        """A scene."""
        self._parts.append(f"## {title}\n")
        self.tell(text)

    def tell(self, text: str) -> None:
        """A paragraph."""
        lines = textwrap.wrap(text, PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)
        self._parts.append("\n".join(lines) + "\n")

    def show(self, screen: str) -> None:
        """A screen as it was."""
        self._parts.append(f"```\n{screen}\n```\n")

    def __str__(self) -> str:
        return "\n".join(self._parts)


class FirstDay:
    """The day: three servers and a spare, and a user beside them."""

    def __init__(self, terminals: Terminals, home: Path, environment: dict[str, str]) -> None:
        self._terminals = terminals
        self._home = home
        self._environment = environment
        self._servers: dict[str, Window] = {}
        self._ticket = ""
        self._user = terminals.open("user")
        self.page = Page()

    def play(self) -> None:
        """All of it, in order."""
        self._serve()
        self._join()
        self._generate()
        self._read_much()
        self._chat()
        self._lose_one()
        self._lose_the_last()
        self._interrupt()
        self._leave()

    def _serve(self) -> None:
        self.page.begin(
            "Three servers",
            "Each server has a terminal of its own. The first one holds ten of the model's thirty blocks, and prints the "
            "ticket by which the others join. Its last line tells its load from then on.",
        )
        self._start("first", "0:10")
        self.page.show(self._servers["first"].screen)
        self.page.tell("Two more have the other blocks. A spare has the second one's blocks too.")
        self._start("second", "10:20")
        self.page.show(self._servers["second"].screen)
        self._start("third", "20:30")
        self._start("spare", "10:20")

    def _start(self, name: str, span: str) -> None:
        """A server in a terminal of its own, which is there already if it served before."""
        window = self._servers.get(name) or self._terminals.open(name)
        window.clear()
        with self._measured(f"serve, {name}", window):
            peers = f" --peers {self._ticket}" if self._ticket else ""
            window.type(f"shoal serve {MODEL} --name {name} --blocks {span}{peers}")
            window.rest_at(SERVES)
        self._servers[name] = window
        found = re.search(r"^(shoal1-\S+)$", window.joined, re.M)
        assert found is not None
        self._ticket = self._ticket or found[1]

    def _join(self) -> None:
        self.page.begin(
            "A swarm with a name", "The user's terminal remembers the swarm, so that no command needs a ticket."
        )
        self._command("join", f"shoal join {self._ticket} --as home")
        self._command("status", "shoal status")

    def _generate(self) -> None:
        self.page.begin("A reply", "The reply comes word by word. Below it stands where the time went.")
        self._command("generate", 'shoal generate "Why is the sea salty?" --max-tokens 64')

    def _read_much(self) -> None:
        self.page.begin("A long prompt", "A long prompt is read first. The last line tells how far it is.")
        from pydoc_data.topics import topics

        (self._home / "book.txt").write_text("\n\n".join(topics[topic] for topic in TOPICS)[:LONG_CHARACTERS])
        line = "shoal generate - --max-tokens 32 < book.txt"
        with self._measured("a long prompt", self._user):
            self._user.clear()
            self._user.type(line)
            self.page.show(self._user.wait_for(r"reading the prompt [1-9],\d{3} of"))
            self.page.tell("And then:")
            self.page.show(self._user.wait_for_prompt())

    def _chat(self) -> None:
        user = self._user
        self.page.begin(
            "A conversation",
            "A chat keeps its session, so that a turn costs its new words alone. Lines that begin with a slash are commands.",
        )
        with self._measured("chat", user):
            user.clear()
            user.type("shoal chat --max-tokens 100")
            user.rest_at(ASKS)
            for line in (
                "/system You are a pirate. Answer in one sentence.",
                "Who are you?",
                "/retry",
                "/save talk.json",
            ):
                user.type(line)
                user.rest_at(ASKS)
            self.page.show(user.screen)
        self.page.tell(
            "The key Up brings earlier lines back. Ctrl-C ends a reply and not the chat; Ctrl-D ends the chat."
        )
        with self._measured("chat, Ctrl-C", user):
            user.press("C-l")
            user.rest_at(r"\A>\Z")
            user.type("Tell me a long story about the sea.")
            user.wait_for(r"\A> .*\n(\s*\S+){12}")
            user.press("C-c")
            user.rest_at(ASKS)
            for _ in range(3):
                user.press("Up")
            user.rest_at(r"^> /retry")
            user.press("C-u")
            user.rest_at(ASKS)
            user.press("C-d")
            self.page.show(user.wait_for_prompt())

    def _lose_one(self) -> None:
        self.page.begin(
            "A server is lost",
            "In the middle of a reply the second server is killed. The spare takes over, and the reply goes on.",
        )
        with self._measured("a server is lost", self._user):
            self._user.clear()
            self._user.type(f"shoal generate {STORY} --max-tokens 260")
            self._user.wait_for(WORDS)
            lost = self._busy("second", "spare")
            self._kill(lost)
            self.page.show(self._user.wait_for_prompt())
        self.page.tell("In the lost server's terminal:")
        self.page.show(self._servers[lost].screen)
        self._command("status, one lost", "shoal status")

    def _lose_the_last(self) -> None:
        left = self._busy("second", "spare", sessions=0)
        self.page.begin(
            "Blocks that no server has",
            "Now the other one is killed too, again in the middle of a reply. The command says what it waits for.",
        )
        with self._measured("blocks are missing and come back", self._user):
            self._user.clear()
            self._user.type(f"shoal generate {STORY} --max-tokens 200")
            self._user.wait_for(WORDS)
            self._kill(left)
            self.page.show(self._user.wait_for(r"waiting for blocks 10:20, [4-9] s"))
        self.page.tell(
            "The second server is started again, by the same command as before. The reply goes on to its end."
        )
        self._start("second", "10:20")
        with self._measured("blocks are back", self._user):
            self.page.show(self._user.wait_for_prompt())
        self.page.tell(
            "Without a server in time there is an error. The patience is a minute; here it is three seconds."
        )
        with self._measured("patience ends", self._user):
            self._user.clear()
            self._user.type(f"shoal generate {STORY} --max-tokens 200 --patience 3")
            self._user.wait_for(WORDS)
            self._kill("second")
            self.page.show(self._user.wait_for_prompt())
        self._start("second", "10:20")

    def _interrupt(self) -> None:
        self.page.begin(
            "Ctrl-C, and going on later",
            "Ctrl-C ends a reply at every server. One that is kept in a file is gone on with later.",
        )
        with self._measured("Ctrl-C", self._user):
            self._user.clear()
            self._user.type(f"shoal generate {STORY} --max-tokens 120 --save reply")
            self._user.wait_for(WORDS)
            self._user.press("C-c")
            self.page.show(self._user.wait_for_prompt())
        self._command("resume", "shoal resume reply")

    def _leave(self) -> None:
        third = self._servers["third"]
        self.page.begin(
            "Leaving", "Ctrl-C lets a server leave in peace. Here it is the only one with its blocks, and says so."
        )
        with self._measured("a server leaves", third):
            third.press("C-c")
            self.page.show(third.wait_for_prompt())
        self._command("status, one left", "shoal status")
        for name in ("second", "first"):
            self._servers[name].press("C-c")
            self._servers[name].wait_for_prompt()

    def _command(self, name: str, line: str) -> None:
        """One that needs nothing more until it ends."""
        with self._measured(name, self._user):
            self._user.clear()
            self._user.type(line)
            self.page.show(self._user.wait_for_prompt())

    def _busy(self, *names: str, sessions: int = 1) -> str:
        """Of these servers the one that has so many sessions now."""
        asked = subprocess.run(("shoal", "status", "--json"), env=self._environment, capture_output=True, check=True)
        servers = json.loads(asked.stdout)["models"][0]["servers"]
        return next(
            str(one["name"])
            for one in servers
            if one["name"] in names and one["load"] is not None and one["load"]["sessions"] == sessions
        )

    def _kill(self, name: str) -> None:
        os.kill(self._servers[name].process_id, signal.SIGKILL)

    @contextmanager
    def _measured(self, name: str, window: Window) -> Iterator[None]:
        """The longest silence of a terminal meanwhile."""
        window.forget()
        yield
        last_line = window.silent_screen.rpartition("\n")[2]
        self.page.silences[name] = {"silence_s": round(window.longest_silence_s, 2), "at": last_line}


def run(write: Path | None) -> dict[str, Any]:
    """Play the day; the longest silence of each scene and the last line of the screen that stood still."""
    with tempfile.TemporaryDirectory(prefix="home-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        environment = {**_environment(home), **SHELL}
        with Terminals(home, environment) as terminals:
            day = FirstDay(terminals, home, environment)
            day.play()
        if write is not None:
            write.write_text(str(day.page))
        silences = day.page.silences
        longest_s = max(one["silence_s"] for one in silences.values())
        return {
            "name": "first-day",
            "longest_silence_s": longest_s,
            "target_s": SILENCE_S,
            "silences": silences,
            "hardware": hardware(),
            "commit": commit(),
        }


def _environment(home: Path) -> dict[str, str]:
    """A home of its own with the model's file and a command `shoal` that is this interpreter's."""
    command = home / "bin" / "shoal"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom shoal.cli.main import main\n\nmain()\n")
    command.chmod(0o755)
    (home / MODEL).symlink_to(demo_model_path())
    path = os.pathsep.join((str(command.parent), os.environ.get("PATH", os.defpath)))
    return {"HOME": str(home), "PATH": path, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
