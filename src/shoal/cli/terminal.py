"""What commands print. Text from outside stays text: no markup, no emoji codes, control characters shown escaped.

Names, models, errors, paths and replies come from peers, files and users. Nothing else in the command line writes to a
terminal. Results go to standard output, everything else to standard error, so that results can be piped.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.cli.status_line import StatusLine
from shoal.cli.word_wrap import WordWrap

console = Console(stderr=True, highlight=False, markup=False, emoji=False)

HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing them, or that are none: all controls but tab and newline."""

MOST_CELLS = 10_000
"""Of a table whose own width is asked for."""

INDENT = "  "
"""Before the further lines of a message, so that none of them looks like a message of its own."""


def escaped(text: str) -> str:
    """A text in which every character can be seen: `\\x1b` for an ESC, `\\u202e` for what turns the direction of writing."""
    return HIDDEN.sub(lambda found: _code(ord(found[0])), text)


def _code(point: int) -> str:
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}"


class _StandardError:
    """Screen: where people look."""

    @property
    def is_terminal(self) -> bool:
        return console.file.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int:
        return console.width

    def put(self, text: str) -> None:
        console.file.write(text)
        console.file.flush()


waiting = StatusLine(_StandardError())
"""What says that a command is still at work, and at what."""


def waits_for(what: Callable[[], str] | str, timed: bool = True) -> None:
    """Say this from now on whenever nothing is printed for a moment; an empty text is not said."""
    waiting.watch((lambda: escaped(what)) if isinstance(what, str) else (lambda: escaped(what())), timed)


FINISHING = "finishing"
"""What is said while servers are told that a session is over."""


def counted(number: int, noun: str) -> str:
    """`1 session`, `2 sessions`, `1,024 sessions`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def styled(text: str, style: str) -> Text:
    """A part of a message in a style of rich's, such as "bold red"."""
    return Text(escaped(text), style)


def say(*parts: str | Text, end: str = "\n", whole: bool = False) -> None:
    """Print a message to standard error; its parts follow one another.

    A terminal gets it broken between words, unless it is to be copied (`whole`).
    """
    line = Text()
    for part in parts:
        line.append_text(part if isinstance(part, Text) else Text(escaped(part)))
    lines: Iterable[Text] = line.split("\n", allow_blank=True)
    if not whole and end and console.file.isatty():
        lines = [part for one in lines for part in _broken(one)]
    with waiting.printing(ends_line=end == "\n"):
        console.print(Text("\n" + INDENT).join(lines), end=end, soft_wrap=True)


def _broken(line: Text) -> Iterable[Text]:
    """A line in parts that a terminal has room for; a word that is longer than one stays whole."""
    offsets, begins_at, room = list[int](), 0, console.width
    for word in re.finditer(r"\S+", line.plain):
        if begins_at < word.start() and cell_len(line.plain[begins_at : word.end()]) > room:
            begins_at, room = word.start(), console.width - len(INDENT)
            offsets.append(begins_at)
    parts = line.divide(offsets)
    for part in parts:
        part.rstrip()
    return parts


def say_table(titles: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table to standard error: its first column stands left, numbers stand right.

    A terminal that is too narrow for it gets a line for each row, in which nothing is cut.
    """
    cells = [[cell if isinstance(cell, Text) else Text(escaped(cell)) for cell in row] for row in rows]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left")
    for row in cells:
        table.add_row(*row)
    width = console.measure(table, options=console.options.update(width=MOST_CELLS)).maximum
    if console.file.isatty() and width > console.width:
        for row in cells:
            _say_row(titles, row)
        return
    # A file is as wide as it takes.
    paper = console if console.file.isatty() else Console(file=console.file, width=width)
    with waiting.printing():
        paper.print(table)


def _say_row(titles: Sequence[str], row: Sequence[Text]) -> None:
    first, *rest = row
    named = [Text(f"{title} ").append_text(cell) for title, cell in zip(titles[1:], rest, strict=False) if cell.plain]
    say(Text(" · ").join([first, *named]))


class ReaderGone(Exception):
    """Nobody reads what is written to standard output any more: it was piped to a program that has ended."""


def write(text: str) -> None:
    """Print a piece of a result to standard output: as it is, unless a terminal would obey it. Raises ReaderGone."""
    if not text:
        return
    with waiting.printing(ends_line=text.endswith("\n") or not sys.stdout.isatty()):
        try:
            sys.stdout.write(escaped(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGone from error


class ReplyText:
    """A reply on standard output, as it comes. A terminal gets it broken between words, a file as it is."""

    def __init__(self) -> None:
        self._wrap = WordWrap(shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
        self._last = ""

    def write(self, piece: str) -> None:
        """Show what has come; raises ReaderGone."""
        self._last = piece or self._last
        write(piece if self._wrap is None else self._wrap.taken(escaped(piece)))

    def end(self, always: bool = False) -> None:
        """Show what is left. What comes next begins on a line of its own; `always`: a line ends here even if none is begun."""
        if self._wrap is not None:
            write(self._wrap.rest())
        if always or (self._last and not self._last.endswith("\n")):
            write("\n")
