"""What a terminal shows, as far as the command line writes to one."""

from __future__ import annotations

import re

_PARTS = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b([78D])|([\r\n\b\a])|([^\x1b\r\n\b\a]+)")


class Screen:
    """Lines of any width, and modes that were switched on. Text that it does not understand is an error."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.modes: set[str] = set()
        self._saved = (0, 0)

    def feed(self, text: str) -> None:
        """Show this. Raises ValueError for a sequence that nothing of ours writes."""
        at = 0
        while at < len(text):
            found = _PARTS.match(text, at)
            if found is None:
                raise ValueError(f"an unknown sequence: {text[at : at + 12]!r}")
            at = found.end()
            private, numbers, final, escape, control, plain = found.groups()
            if plain:
                self._write(plain)
            elif control:
                self._control(control)
            elif escape:
                self._escape(escape)
            else:
                self._sequence(private, numbers, final)

    def _write(self, text: str) -> None:
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
        self.column += len(text)

    def _control(self, control: str) -> None:
        if control == "\n":
            self._down()
        elif control == "\r":
            self.column = 0
        elif control == "\b":
            self.column = max(0, self.column - 1)

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def _escape(self, escape: str) -> None:
        if escape == "D":
            self._down()
        elif escape == "7":
            self._saved = self.row, self.column
        else:
            self.row, self.column = self._saved

    def _sequence(self, private: str, numbers: str, final: str) -> None:
        number = int(numbers) if numbers.isdigit() else 0
        if private:
            (self.modes.add if final == "h" else self.modes.discard)(numbers)
        elif final == "A":
            self.row = max(0, self.row - max(1, number))
        elif final == "C":
            self.column += max(1, number)
        elif final == "K" and number == 2:
            self.lines[self.row] = ""
        elif final == "K" and number == 0:
            self.lines[self.row] = self.lines[self.row][: self.column]
        elif final != "m":
            raise ValueError(f"an unknown sequence: {private}{numbers}{final}")
