"""Shoal: language models that no single machine can hold, on a swarm of peers.

`connect` gives a model to blocking code, `connect_async` to asyncio code, `AsyncClient` the swarm itself. Importing this
imports neither torch nor anything else: the names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
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
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
