"""Terminals in which a program types, looks and waits as a user does: windows of a tmux server of their own."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from shoal.errors import UsageError

COLUMNS, ROWS = 80, 30

SAMPLE_S = 0.1
"""How often a screen is looked at while it is waited for."""

PROMPT = "$ "
TIMEOUT_S = 300.0


class Terminals:
    """A tmux server with its socket in `home`, and shells in it that have no more of the environment than is given.

    Use with `with`; raises UsageError where there is no tmux.
    """

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        if shutil.which("tmux") is None:
            raise UsageError("tmux is not installed: apt-get install tmux")
        self._home = home
        self._environment = dict(environment)
        self._socket = home / ".tmux"
        self._windows: list[Window] = []
        self._closed = threading.Event()
        self._looking = threading.Thread(target=self._look, name="bench-terminals", daemon=True)

    def __enter__(self) -> Terminals:
        self._looking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._looking.join()
        with contextlib.suppress(subprocess.CalledProcessError):  # it ends with its last window
            self.tmux("kill-server")

    def open(self, name: str) -> Window:
        """A terminal with a shell that waits for its first line."""
        shell = f"env PS1='{PROMPT}' bash --noprofile --norc"
        size = ("-x", str(COLUMNS), "-y", str(ROWS))
        self.tmux("-f", "/dev/null", "new-session", "-d", "-s", name, *size, "-c", str(self._home), shell)
        self.tmux("set-option", "-t", name, "status", "off")
        self.tmux("resize-window", "-t", name, *size)
        window = Window(self, name)
        self._windows.append(window)
        window.wait_for_prompt()
        return window

    def tmux(self, *arguments: str) -> str:
        """What a command of tmux prints; raises CalledProcessError."""
        command = ("tmux", "-S", str(self._socket), *arguments)
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True)
        return done.stdout

    def _look(self) -> None:
        while not self._closed.wait(SAMPLE_S):
            for window in list(self._windows):
                if window.works:
                    window.look()


class Window:
    """One terminal. `works` from a key on until what was waited for is there and the user's turn comes.

    `longest_silence_s` is how long its screen stood still meanwhile, and `silent_screen` that screen.
    """

    def __init__(self, terminals: Terminals, name: str) -> None:
        self._terminals = terminals
        self._name = name
        self._screen = ""
        self._changed_at = time.monotonic()
        self.works = False
        self.forget()

    def forget(self) -> None:
        """Begin to measure anew."""
        self.longest_silence_s = 0.0
        self.silent_screen = ""

    def look(self) -> None:
        """Note whether something has changed."""
        screen, now = self._captured(), time.monotonic()
        if screen == self._screen and now - self._changed_at > self.longest_silence_s:
            self.longest_silence_s, self.silent_screen = now - self._changed_at, screen
        if screen != self._screen:
            self._screen, self._changed_at = screen, now

    @property
    def screen(self) -> str:
        """What was seen last, without empty lines at the end."""
        return self._screen

    @property
    def joined(self) -> str:
        """What is to be seen now, with lines whole that were broken at the edge."""
        return self._captured("-J")

    def _captured(self, *options: str) -> str:
        text = self._terminals.tmux("capture-pane", "-p", *options, "-t", self._name)
        return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()

    @property
    def process_id(self) -> int:
        """The program in front, a child of this window's shell; the shell's own while it waits for a line."""
        shell = int(self._terminals.tmux("display-message", "-p", "-t", self._name, "#{pane_pid}"))
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(children[0]) if children else shell

    def type(self, line: str) -> None:
        """A line, and Enter when it stands there."""
        self._terminals.tmux("send-keys", "-t", self._name, "-l", line)
        self._begin()
        self.wait_for(re.escape(line[-1:]) + r"\Z")
        self.press("Enter")

    def press(self, key: str) -> None:
        """A key by its name in tmux, such as C-c or Up."""
        self._terminals.tmux("send-keys", "-t", self._name, key)
        self._begin()

    def _begin(self) -> None:
        self._changed_at = time.monotonic()  # until now it was the user who was waited for
        self.works = True

    def clear(self) -> None:
        """An empty screen with a prompt."""
        self.type("clear")
        self.rest_at(rf"\A{re.escape(PROMPT.strip())}\Z")

    def wait_for(self, pattern: str, within_s: float = TIMEOUT_S) -> str:
        """The first screen on which the pattern is found; raises TimeoutError with the last one."""
        self.works = True
        give_up_at = time.monotonic() + within_s
        while not re.search(pattern, screen := self._screen, re.M):
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{pattern!r} is not on the screen:\n{screen}")
            time.sleep(SAMPLE_S / 2)
        return screen

    def rest_at(self, pattern: str, within_s: float = TIMEOUT_S) -> str:
        """The same; from then on nothing of this window is waited for."""
        screen = self.wait_for(pattern, within_s)
        self.works = False
        return screen

    def wait_for_prompt(self, within_s: float = TIMEOUT_S) -> str:
        """The screen when the command has ended."""
        return self.rest_at(rf"^{re.escape(PROMPT.strip())}\Z", within_s)
