"""What commands print as JSON."""

from __future__ import annotations

import io
import sys

import msgspec
import pytest
import typer

from shoal.cli.output import print_json, run_command
from shoal.cli.terminal import write
from shoal.errors import NetworkError, UsageError
from shoal.protocol.messages import Status


def test_a_server_s_load_has_all_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """A script can rely on each of them."""
    fields = {field.name for field in msgspec.structs.fields(Status) if field.required}
    status = msgspec.convert(dict.fromkeys(fields, 1) | {"type": "status"}, Status, strict=False)
    print_json(status)
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert set(shown) >= set(Status.__struct_fields__)


def failing(error: BaseException) -> object:
    """A command that ends with this error."""

    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UsageError("no [/such] thing"), "error: no [/such] thing"),
        (ExceptionGroup("many", [ExceptionGroup("few", [NetworkError("gone")])]), "error (network): gone"),
        (KeyError("x\ny"), "error (a mistake in Shoal): KeyError: 'x\\ny'"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), "error (a mistake in Shoal): UnicodeEncodeError"),
    ],
)
def test_whatever_is_left_is_one_line(error: Exception, words: str, said: io.StringIO) -> None:
    """An error of ours, one inside a group, and one that nobody foresaw; the trace is for who asks for it."""
    with pytest.raises(SystemExit) as ended:
        run_command(failing(error))  # type: ignore[arg-type]  # a command by its shape
    assert ended.value.code == 1
    assert said.getvalue().startswith(words)
    assert "Traceback" not in said.getvalue()


def test_a_reader_that_is_gone_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the code that a shell gives to it, also where the command's framework would make another of it."""
    codes: list[int] = []

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("os._exit", codes.append)
    monkeypatch.setattr(sys, "stdout", Closed())
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(lambda: write("text"))
    monkeypatch.setattr(sys, "argv", ["shoal"])
    run_command(app)
    assert codes == [141]


def test_the_trace_is_there_for_who_asks(said: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--debug` shows it, wherever it stands before `--`."""
    monkeypatch.setattr(sys, "argv", ["shoal", "status", "--debug"])
    with pytest.raises(SystemExit):
        run_command(failing(KeyError("x")))  # type: ignore[arg-type]  # a command by its shape
    assert "test_output.py" in said.getvalue()
    monkeypatch.setattr(sys, "argv", ["shoal", "generate", "--", "--debug"])
    said.truncate(0)
    with pytest.raises(SystemExit):
        run_command(failing(KeyError("x")))  # type: ignore[arg-type]  # a command by its shape
    assert "test_output.py" not in said.getvalue()
