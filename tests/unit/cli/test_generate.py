"""`shoal generate`: a reply as it comes, and what is said of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest

from shoal.cli.generate import print_reply, result, show_times
from shoal.cli.output import report
from shoal.client.completion import Timings
from shoal.errors import ShoalError
from tests.unit.cli.replies import COMPLETION, Stream


def test_text_goes_to_standard_output_and_times_beside_it(
    said: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a reply can be piped."""
    print_reply(Stream("a ", "reply"), None, as_json=False)  # type: ignore[arg-type]  # a stream by its shape
    assert capsys.readouterr().out == "a reply\n"
    assert "prefill 6.0 tokens/s · decode 4.0 tokens/s" in said.getvalue()


def test_json_is_one_document(said: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing besides."""
    print_reply(Stream("a ", "reply"), None, as_json=True)  # type: ignore[arg-type]  # a stream by its shape
    shown = json.loads(capsys.readouterr().out)
    assert (shown["text"], shown["token_ids"], shown["seed"]) == ("a reply", [4, 5], 7)
    assert shown["route"][0] == {"peer": "a" * 64, "name": "near", "span": [0, 2]}
    assert shown["trace"][0]["hops"][1]["name"] == "far"
    assert said.getvalue() == ""


@pytest.mark.parametrize(("kept", "words"), [(None, "cancelled"), (Path("reply.json"), "shoal resume reply.json")])
def test_ctrl_c_ends_a_reply_with_what_there_is(
    kept: Path | None, words: str, said: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """And then the command; a reply that is kept can be gone on with."""
    with pytest.raises(KeyboardInterrupt):
        print_reply(Stream("a ", KeyboardInterrupt()), kept, as_json=False)  # type: ignore[arg-type]  # by its shape
    assert capsys.readouterr().out == "a \n"
    assert words in said.getvalue()
    assert "decode" in said.getvalue()


def test_a_hops_times_are_the_median_of_its_own_steps(said: io.StringIO) -> None:
    """Steps over a route that was left do not count."""
    show_times(COMPLETION)
    rows = [line.split() for line in said.getvalue().splitlines()]
    assert ["near", "0:2", "20.00", "1.00", "2.00"] in rows
    assert ["back", "to", "here", "4.00"] in rows
    assert "not exact" not in said.getvalue()
    show_times(msgspec.structs.replace(COMPLETION, exact=False))
    assert "not exact" in said.getvalue()


def test_a_reply_of_one_token_has_no_times(said: io.StringIO) -> None:
    """Nothing was decoded, so no rate is shown; its seed is, and the reply is whole as JSON."""
    short = msgspec.structs.replace(COMPLETION, traces=(), timings=Timings(0.5, 0.0, 3, 0))
    show_times(short)
    assert said.getvalue() == "prefill 6.0 tokens/s · seed 7\n"
    assert result(short)["trace"] == ()


@pytest.mark.parametrize(("piece", "out"), [("The sea was", "The sea was\n"), ("whole\n", "whole\n"), ("", "")])
def test_an_error_begins_on_its_own_line(piece: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever came of the reply before it."""
    with pytest.raises(ShoalError):
        print_reply(Stream(piece, ShoalError("gone")), None, as_json=False)  # type: ignore[arg-type]  # by its shape
    assert capsys.readouterr().out == out


def test_an_error_says_how_to_go_on(tmp_path: Path, said: io.StringIO) -> None:
    """Where the reply is kept; a name with a blank can be pasted."""
    kept = tmp_path / "my reply"
    for there in (False, True):
        if there:
            kept.touch()
        with pytest.raises(ShoalError) as caught:
            print_reply(Stream("a ", ShoalError("gone")), kept, as_json=False)  # type: ignore[arg-type]  # by its shape
        report(caught.value)
        assert (f"shoal resume '{kept}'" in said.getvalue()) == there
