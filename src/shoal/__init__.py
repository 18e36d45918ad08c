"""Shoal: language models that no single machine can hold, on a swarm of peers.

`connect` gives a model to blocking code, `AsyncClient` the swarm itself to asyncio code. Importing this imports
neither torch nor anything else: the names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.client.client import AsyncClient
    from shoal.client.options import SessionOptions
    from shoal.client.session.session import Session
    from shoal.client.sync import Chat, Model, connect
    from shoal.model.nn.sampling import SamplingParams
    from shoal.types import Hop, ModelSpec, Span

_HOMES = {
    "AsyncClient": "shoal.client.client",
    "Chat": "shoal.client.sync",
    "Hop": "shoal.types",
    "Model": "shoal.client.sync",
    "ModelSpec": "shoal.types",
    "SamplingParams": "shoal.model.nn.sampling",
    "Session": "shoal.client.session.session",
    "SessionOptions": "shoal.client.options",
    "Span": "shoal.types",
    "connect": "shoal.client.sync",
}

__all__ = [
    "AsyncClient",
    "Chat",
    "Hop",
    "Model",
    "ModelSpec",
    "SamplingParams",
    "Session",
    "SessionOptions",
    "Span",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
