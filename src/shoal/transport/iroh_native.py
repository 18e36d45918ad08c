"""Living with iroh's generated binding: loading it, reading its errors, and letting go of its objects safely.

iroh calls back into Python on threads of its own, holding locks of the connection concerned. If the cyclic garbage collector
happens to run in such a call and finds an iroh object, freeing that object waits for the same lock, and the whole
process hangs. So no iroh object may ever become part of cyclic garbage: they are referenced only by frames, by channels
until they end, and by their transport, and `contained` keeps the frames out of tracebacks, which outlive them.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

from shoal.errors import UsageError
from shoal.transport.iroh_patch import apply

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def load_iroh() -> Any:
    """The iroh package with its byte copy replaced. Raises UsageError when it is not installed or does not load."""
    try:
        package = importlib.import_module("iroh")
        binding = importlib.import_module("iroh.iroh_ffi")
    except (ImportError, OSError) as error:
        raise UsageError(f"the iroh transport needs the package `iroh`, which does not load: {error}") from error
    apply(binding._UniffiRustBufferBuilder)
    return package


def failure_text(error: Any) -> str:
    """The innermost cause that iroh names for one of its errors, on one line."""
    text = str(error.message() if hasattr(error, "message") else error)
    return " ".join(text.rpartition("Caused by:")[2].split())


async def contained(work: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
    """What `work(*arguments)` gives or raises, without the frames that it ran in and without the errors behind its error."""
    try:
        return await work(*arguments)
    except BaseException as error:
        bare = error.with_traceback(None)
        bare.__cause__ = bare.__context__ = None
    del work, arguments
    try:
        raise bare
    finally:
        del bare  # or this frame and its own traceback would be a cycle
