"""What `import shoal` offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from shoal import errors

PUBLIC = {
    *("connect", "connect_async", "Model", "AsyncModel", "AsyncClient"),
    *("Completion", "CompletionStream", "AsyncCompletionStream", "ChatSession", "AsyncChatSession"),
    *("RouteHop", "Timings", "Usage", "FailoverEvent", "StepTrace", "HopTime"),
    *("ConnectOptions", "ReplyOptions", "SamplingParams", "SessionOptions"),
    *("RouteOptions", "Discoveries", "DiscoveryOptions", "PrivateSwarm", "SavedReply", "read_saved"),
    *("Hop", "ModelSpec", "Session", "Span"),
}
ERRORS = {
    name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, errors.ShoalError)
}

SNIPPET = """
import shoal

def blocking(ticket: str) -> str:
    with shoal.connect(peers=[ticket]) as model:
        for text in model.stream("The sea is", max_tokens=64, stop="."):
            print(text, end="")
        reply: shoal.Completion = model.generate([1, 2, 3], options=shoal.SessionOptions(redundancy=2))
        with model.chat(system="Answer briefly.") as chat:
            return str(chat.say("Who are you?", temperature=0.7)) + str(reply.timings.decode_tokens_per_s)

async def asynchronous(ticket: str) -> tuple[int, ...]:
    async with await shoal.connect_async(peers=[ticket]) as model:
        async with model.stream("The sea is") as stream:
            async for text in stream:
                print(text, end="")
        return stream.completion.token_ids
"""
WRONG = """
import shoal
shoal.connect(peers=[]).generate(1.5)
shoal.SessionOptions(redundancy="two")
"""


def test_the_public_names_are_these() -> None:
    """One is added or goes on purpose only; every error may be caught."""
    assert set(shoal.__all__) == PUBLIC | ERRORS
    assert list(shoal.__all__) == sorted(shoal.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC | ERRORS))
def test_each_name_is_there(name: str) -> None:
    """Loaded when it is first used, and shown by `dir`."""
    assert getattr(shoal, name).__name__ == name
    assert name in dir(shoal)


def test_other_names_are_not() -> None:
    """An error that Python knows how to read."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shoal.nothing  # type: ignore[attr-defined]


def test_importing_it_loads_nothing() -> None:
    """Neither torch nor a module of ours."""
    program = "import sys, shoal; print([name for name in sys.modules if name.startswith(('shoal.', 'torch'))])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"


def test_the_package_is_typed(tmp_path: Path) -> None:
    """Programs that use it are checked: right ones pass, wrong arguments do not."""
    assert Path(shoal.__file__).with_name("py.typed").is_file()

    def checked(text: str) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "program.py"
        program.write_text(text)
        command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
        return subprocess.run([*command, str(program)], capture_output=True, text=True, check=False, timeout=110)

    right, wrong = checked(SNIPPET), checked(WRONG)
    assert right.returncode == 0, right.stdout + right.stderr
    assert "generate" in wrong.stdout
    assert "redundancy" in wrong.stdout
