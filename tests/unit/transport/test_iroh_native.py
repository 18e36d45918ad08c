"""Living with iroh's binding: errors without frames, causes in one line, a package that may be missing."""

from __future__ import annotations

import asyncio
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.errors import DialError, UsageError
from shoal.transport.iroh_native import contained, failure_text, load_iroh
from shoal.transport.iroh_transport import IrohTransport


async def test_contained_hides_frames() -> None:
    """An error passes through, with neither the frames below nor the errors behind it."""

    async def work() -> None:
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise DialError("effect") from error

    with pytest.raises(DialError, match="effect") as caught:
        await contained(work)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "work" not in [entry.name for entry in caught.traceback]


async def test_contained_returns() -> None:
    """A result passes through."""
    assert await contained(asyncio.sleep, 0, "done") == "done"


def test_failure_text_is_short() -> None:
    """Of iroh's chains of causes, the last is told."""
    error = RuntimeError("ConnectError (src/endpoint.rs:1)\n  Caused by:\n   one\n Caused by:\n   timed\n out")
    assert failure_text(error) == "timed out"


async def test_contained_takes_arguments_and_passes_cancelling_on() -> None:
    """A task that is cancelled within ends as cancelled."""
    begun: list[str] = []

    async def wait(word: str) -> None:
        begun.append(word)
        await asyncio.Event().wait()

    task = asyncio.create_task(contained(wait, "now"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert begun == ["now"]


def test_an_error_of_iroh_tells_its_message() -> None:
    """Its own errors have a method for that."""

    class Failure(Exception):
        def message(self) -> str:
            return "closed by\n peer"

    assert failure_text(Failure("something else")) == "closed by peer"


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iroh the transport says what is missing."""
    monkeypatch.setitem(sys.modules, "iroh", None)
    with pytest.raises(UsageError, match="package `iroh`"):
        IrohTransport(Ed25519PrivateKey.generate())


def test_a_package_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of its library is told."""
    monkeypatch.setitem(sys.modules, "iroh.iroh_ffi", None)
    with pytest.raises(UsageError, match=r"does not load: .*iroh_ffi"):
        load_iroh()
