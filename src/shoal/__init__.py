"""Shoal: language models that no single machine can hold, on a swarm of peers.

`connect` gives a model to blocking code, `connect_async` to asyncio code, `AsyncClient` the swarm itself. Importing this
imports neither torch nor anything else: the names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.client.async_model import AsyncModel, connect_async
    from shoal.client.chat_session import AsyncChatSession
    from shoal.client.client import AsyncClient
    from shoal.client.client_options import ConnectOptions, ReplyOptions, SessionOptions
    from shoal.client.completion import AsyncCompletionStream, Completion, RouteHop, Timings, Usage
    from shoal.client.saved_reply import SavedReply, read_saved
    from shoal.client.session.route_state import FailoverEvent
    from shoal.client.session.session import Session
    from shoal.client.step_trace import HopTime, StepTrace
    from shoal.client.sync import ChatSession, CompletionStream, Model, connect
    from shoal.errors import (
        CapacityError,
        ChannelClosed,
        CheckpointError,
        CorruptFrame,
        DialError,
        FingerprintMismatch,
        GrantExceeded,
        IdentityError,
        InvalidMessage,
        InviteError,
        ModelNotFound,
        NetworkError,
        NoRoute,
        NotAMember,
        NotHeld,
        PeerError,
        ProtocolError,
        RecordError,
        Refused,
        ServerFull,
        SessionBusy,
        SessionFenced,
        SessionLost,
        ShoalError,
        SpanError,
        TicketError,
        UnknownQuestion,
        UnsupportedModel,
        UsageError,
        WrongRows,
    )
    from shoal.model.nn.sampling_params import SamplingParams
    from shoal.swarm.discovery.discovery_options import Discoveries, DiscoveryOptions
    from shoal.swarm.membership.storage import PrivateSwarm
    from shoal.swarm.routing.route_options import RouteOptions
    from shoal.types import Hop, ModelSpec, Span

_HOMES = {
    "shoal.client.async_model": ("AsyncModel", "connect_async"),
    "shoal.client.chat_session": ("AsyncChatSession",),
    "shoal.client.client": ("AsyncClient",),
    "shoal.client.completion": ("AsyncCompletionStream", "Completion", "RouteHop", "Timings", "Usage"),
    "shoal.client.client_options": ("ConnectOptions", "ReplyOptions", "SessionOptions"),
    "shoal.client.saved_reply": ("SavedReply", "read_saved"),
    "shoal.client.session.route_state": ("FailoverEvent",),
    "shoal.client.session.session": ("Session",),
    "shoal.client.step_trace": ("HopTime", "StepTrace"),
    "shoal.client.sync": ("ChatSession", "CompletionStream", "Model", "connect"),
    "shoal.errors": (
        "CapacityError",
        "ChannelClosed",
        "CheckpointError",
        "CorruptFrame",
        "DialError",
        "FingerprintMismatch",
        "GrantExceeded",
        "IdentityError",
        "InvalidMessage",
        "InviteError",
        "ModelNotFound",
        "NetworkError",
        "NoRoute",
        "NotAMember",
        "NotHeld",
        "PeerError",
        "ProtocolError",
        "RecordError",
        "Refused",
        "ServerFull",
        "SessionBusy",
        "SessionFenced",
        "SessionLost",
        "ShoalError",
        "SpanError",
        "TicketError",
        "UnknownQuestion",
        "UnsupportedModel",
        "UsageError",
        "WrongRows",
    ),
    "shoal.model.nn.sampling_params": ("SamplingParams",),
    "shoal.swarm.discovery.discovery_options": ("Discoveries", "DiscoveryOptions"),
    "shoal.swarm.membership.storage": ("PrivateSwarm",),
    "shoal.swarm.routing.route_options": ("RouteOptions",),
    "shoal.types": ("Hop", "ModelSpec", "Span"),
}

_LOADED: dict[str, ModuleType] = {}
"""Modules of these that are there as a whole: what another thread imports stands in sys.modules from its beginning."""

__all__ = [
    "AsyncChatSession",
    "AsyncClient",
    "AsyncCompletionStream",
    "AsyncModel",
    "CapacityError",
    "ChannelClosed",
    "ChatSession",
    "CheckpointError",
    "Completion",
    "CompletionStream",
    "ConnectOptions",
    "CorruptFrame",
    "DialError",
    "Discoveries",
    "DiscoveryOptions",
    "FailoverEvent",
    "FingerprintMismatch",
    "GrantExceeded",
    "Hop",
    "HopTime",
    "IdentityError",
    "InvalidMessage",
    "InviteError",
    "Model",
    "ModelNotFound",
    "ModelSpec",
    "NetworkError",
    "NoRoute",
    "NotAMember",
    "NotHeld",
    "PeerError",
    "PrivateSwarm",
    "ProtocolError",
    "RecordError",
    "Refused",
    "ReplyOptions",
    "RouteHop",
    "RouteOptions",
    "SamplingParams",
    "SavedReply",
    "ServerFull",
    "Session",
    "SessionBusy",
    "SessionFenced",
    "SessionLost",
    "SessionOptions",
    "ShoalError",
    "Span",
    "SpanError",
    "StepTrace",
    "TicketError",
    "Timings",
    "UnknownQuestion",
    "UnsupportedModel",
    "Usage",
    "UsageError",
    "WrongRows",
    "connect",
    "connect_async",
    "read_saved",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    home = next(home for home, names in _HOMES.items() if name in names)
    if home not in _LOADED:
        _LOADED[home] = _imported(home)
    return getattr(_LOADED[home], name)


def _imported(home: str) -> ModuleType:
    """A module, imported where no Ctrl-C comes: half-imported, torch and numpy fail in ways of their own, or end the process.

    The main thread, which alone gets it, waits meanwhile. After a KeyboardInterrupt the import goes on to its end.
    """
    if threading.current_thread() is not threading.main_thread():
        return importlib.import_module(home)
    found: list[ModuleType | BaseException] = []

    def work() -> None:
        try:
            found.append(importlib.import_module(home))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, name="shoal-import")
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
