"""Rows of tokens from texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal.errors import UsageError
from shoal.quantize.calibration import Text, digest_of, package_text, read_text, token_rows


def letters(text: str) -> list[int]:
    """A tokenizer of characters."""
    return [ord(letter) for letter in text]


TEXT = Text("t", "".join(chr(65 + at * at % 997) for at in range(1000)))


def test_rows_are_parts_of_the_text_none_twice() -> None:
    """From its beginning to its end, in an order that is not the text's."""
    rows = token_rows([TEXT], letters, 20, 25)
    whole, starts = letters(TEXT.content), []
    for row in rows.tolist():
        starts.append(next(at for at in range(0, 1000, 25) if whole[at : at + 25] == row))
    assert rows.shape == (20, 25)
    assert starts != sorted(starts)
    assert np.array_equal(rows, token_rows([TEXT], letters, 20, 25))


def test_a_text_that_is_too_short_is_named() -> None:
    """With what is needed."""
    with pytest.raises(UsageError, match="t has 1,000 tokens: 11 rows of 100 need 1,100"):
        token_rows([TEXT], letters, 11, 100)


def test_texts_of_the_package_are_different_ones() -> None:
    """The text of the report has no paragraph of calibration's; both are long enough for the defaults of any tokenizer."""
    calibration, evaluation = package_text("calibration").content, package_text("evaluation").content
    paragraphs = [one for one in evaluation.split("\n\n") if len(one) > 40]
    assert len(paragraphs) > 100
    assert not any(one in calibration for one in paragraphs)
    assert len(calibration) > 6 * 64 * 512
    assert len(evaluation) > 6 * 8 * 512


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, and no file."""
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="cannot read"):
        read_text(tmp_path / "b.txt")


def test_a_digest_tells_rows_from_others() -> None:
    """Their shape too."""
    rows = token_rows([TEXT], letters, 4, 25)
    assert digest_of(rows) == digest_of(rows.copy())
    assert digest_of(rows) != digest_of(rows.reshape(2, 50))
    assert digest_of(rows) != digest_of(rows + 1)
