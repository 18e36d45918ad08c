"""Command-line flags made from the fields of options structs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from shoal.cli.option_flags import with_option_flags
from shoal.errors import UsageError
from shoal.options import Options, option


def _upper(text: str) -> str:
    if text == "bad":
        raise UsageError("a word is good", field="word")
    return text.upper()


def _all(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(texts)


class Example(Options, frozen=True, kw_only=True):
    """Options of every kind."""

    max_tokens: Annotated[int, option("The longest reply.", "Reply", least=1)] = 8
    rate: Annotated[float | None, option("Of sending.", "Limits", above=0, parse=float)] = None
    codec: Annotated[Literal["fp32", "bf16"], option("How rows travel.", "Session")] = "fp32"
    bits: Annotated[Literal[8, 4] | None, option("Of a weight.", "Session")] = None
    word: Annotated[str, option("A word.", "Reply", parse=_upper)] = "none"
    stop: Annotated[tuple[str, ...], option("End before it.", "Reply", parse=_all, repeated=True)] = ()
    exact: Annotated[bool, option("Wait for equal bits.", "Session")] = False
    secret: Annotated[int, option("Not for people.", shown=False)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exact and self.max_tokens > 50:
            raise UsageError("max_tokens goes with exact only up to 50", field="max_tokens")


SEEN: list[Example] = []
SHORT = Example(max_tokens=5)


@with_option_flags("rate")
def command(prompt: Annotated[str, typer.Argument()], options: Example = SHORT, *, loud: bool = False) -> None:
    """A command."""
    SEEN.append(options)


APP = typer.Typer()
APP.command()(command)


def called(*arguments: str) -> Example:
    """The options that the command got."""
    result = CliRunner().invoke(APP, ["hello", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return SEEN[-1]


def test_the_defaults_are_those_of_the_command() -> None:
    """Without flags the command gets its own default struct."""
    assert called() == SHORT


def test_flags_become_fields() -> None:
    """Texts are parsed, repeated flags gathered."""
    options = called("--max-tokens", "9", "--codec", "bf16", "--word", "hi", "--stop", "a", "--stop", "b", "--exact")
    assert options == Example(max_tokens=9, codec="bf16", word="HI", stop=("a", "b"), exact=True)
    assert called("--bits", "4").bits == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--exact", "--max-tokens", "60"], "--max-tokens goes with exact only up to 50"),
        (["--word", "bad"], "--word cannot be 'bad': a word is good"),
        (["--bits", "7"], "--bits cannot be 7: it is one of 8, 4"),
    ],
)
def test_what_is_refused_is_named_by_its_flag(arguments: list[str], text: str) -> None:
    """The error of the struct, in the words of the command line."""
    with pytest.raises(UsageError) as caught:
        called(*arguments)
    assert str(caught.value) == text


@pytest.mark.parametrize("arguments", [["--secret", "1"], ["--rate", "3"], ["--max-tokens", "0"], ["--codec", "fp8"]])
def test_flags_that_there_are_not(arguments: list[str]) -> None:
    """Hidden options have no flag; bounds and choices are the parser's own affair."""
    assert CliRunner().invoke(APP, ["hello", *arguments]).exit_code == 2
