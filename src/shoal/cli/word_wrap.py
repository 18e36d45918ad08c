"""Text that comes in pieces, broken between words at the edge of a terminal."""

from __future__ import annotations

from rich.cells import cell_len

LONG_WORD = 20
"""Cells. A word that begins farther from the edge is shown as it comes; one nearer to it when it is whole."""

TAB = 8


class WordWrap:
    """Lines of `width` cells. What is not broken by it, such as a word longer than a line, the terminal breaks itself."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0
        self._begins_at = 0
        self._held = ""

    def taken(self, piece: str) -> str:
        """What can be shown now that this has come too."""
        return "".join(self._shown(sign) for sign in piece)

    def rest(self) -> str:
        """What was held back since its word was not whole; nothing more comes."""
        shown, self._held = self._held, ""
        return shown

    def _shown(self, sign: str) -> str:
        if sign == "\n":
            self._column = self._begins_at = 0
            return self.rest() + sign
        if sign.isspace():
            return self._after_word(sign)
        if not self._held and self._begins_at + LONG_WORD <= self._width:
            self._advance(cell_len(sign))
            return sign
        self._held += sign
        if self._column + cell_len(self._held) <= self._width:
            return ""
        broken = "\n" if self._column else ""
        self._column = self._begins_at = 0
        self._advance(cell_len(self._held))
        return broken + self.rest()

    def _after_word(self, blank: str) -> str:
        self._advance(cell_len(self._held))
        word = self.rest()
        blanks = TAB - self._column % TAB if blank == "\t" else 1
        if self._column + blanks >= self._width:
            self._column = self._begins_at = 0
            return f"{word}\n"
        self._column += blanks
        self._begins_at = self._column
        return word + blank

    def _advance(self, cells: int) -> None:
        """The terminal goes on in the next line by itself."""
        self._column += cells
        if self._column > self._width:
            self._column %= self._width
