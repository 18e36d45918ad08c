"""What a caller may ask of a reply: written once, for the asynchronous and the blocking face."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import msgspec

from shoal.client.client import ROUTE_WAIT_S
from shoal.client.options import SessionOptions
from shoal.errors import UsageError
from shoal.model.nn.sampling import SamplingParams

KEEP_S = 300.0
"""How long servers are asked to hold the session of a reply that is kept in a file."""


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`; `stop` may be one text."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool


class ReplyOptions(SamplingOptions, total=False):
    """Sampling, and the fields of `ReplySettings`."""

    raw: bool
    wait_s: float
    save: str | os.PathLike[str] | None
    keep_s: float
    options: SessionOptions


class ReplySettings(msgspec.Struct, frozen=True):
    """How a reply is begun.

    `raw`: continue the text; otherwise answer it in the model's chat template. `wait_s`: how long to wait for a route.
    `save`: a file in which the reply is kept as it grows; servers hold its session for `keep_s` then. `options`: what is asked
    of the session, but for `max_tokens`, which follows from the prompt.
    """

    raw: bool = True
    wait_s: float = ROUTE_WAIT_S
    save: Path | None = None
    keep_s: float = KEEP_S
    options: SessionOptions = SessionOptions()


def sampling_params(given: Mapping[str, Any]) -> SamplingParams:
    """Raises UsageError for a name that is none of SamplingOptions, or a value that makes no sense."""
    return SamplingParams(**_known(given, SamplingOptions.__annotations__))


def reply_settings(given: Mapping[str, Any]) -> tuple[ReplySettings, SamplingParams]:
    """Raises UsageError for a name that is none of ReplyOptions, or a value that makes no sense."""
    given = _known(given, ReplyOptions.__annotations__)
    own = {name: value for name, value in given.items() if name in ReplySettings.__struct_fields__}
    if own.get("save") is not None:
        own["save"] = Path(own["save"])
    sampling = {name: value for name, value in given.items() if name not in own}
    return ReplySettings(**own), SamplingParams(**sampling)


def _known(given: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Any]:
    for name in given:
        if name not in names:
            raise UsageError(f"there is no option {name}: choose of {', '.join(sorted(names))}")
    known = dict(given)
    if "stop" in known:
        stop = known["stop"]
        known["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return known
