"""What commands print. Text from outside stays text: no markup, no emoji codes, control characters shown escaped.

Names, models, errors, paths and replies come from peers, files and users. Nothing else in the command line writes to a
terminal. Results go to standard output, everything else to standard error, so that results can be piped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console(stderr=True, highlight=False, markup=False, emoji=False)

HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing them, or that are none: all controls but tab and newline."""

INDENT = "  "
"""Before the further lines of a message, so that none of them looks like a message of its own."""


def escaped(text: str) -> str:
    """A text in which every character can be seen: `\\x1b` for an ESC, `\\u202e` for what turns the direction of writing."""
    return HIDDEN.sub(lambda found: _code(ord(found[0])), text)


def _code(point: int) -> str:
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}"


def styled(text: str, style: str) -> Text:
    """A part of a message in a style of rich's, such as "bold red"."""
    return Text(escaped(text), style)


def say(*parts: str | Text, end: str = "\n") -> None:
    """Print a message to standard error; its parts follow one another. It is not wrapped."""
    line = Text()
    for part in parts:
        line.append_text(part if isinstance(part, Text) else Text(escaped(part)))
    lines = line.split("\n", allow_blank=True)
    console.print(Text("\n" + INDENT).join(lines), end=end, soft_wrap=True)


def say_table(titles: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table to standard error: its first column stands left, numbers stand right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(escaped(cell)) for cell in row))
    console.print(table)


def write(text: str) -> None:
    """Print a piece of a result to standard output: as it is, unless a terminal would obey it."""
    sys.stdout.write(escaped(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
