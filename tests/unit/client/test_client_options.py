"""Keywords of connections, sessions and replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.client.client_options import ConnectOptions, ReplyOptions, SessionOptions, connect_options, reply_options
from shoal.errors import UsageError
from shoal.model.nn.sampling_params import SamplingParams
from shoal.swarm.routing.route_options import RouteOptions
from shoal.types import PeerId, Span

NODE = PeerId("ab" * 32)


def test_keywords_are_divided() -> None:
    """Each goes to the struct that it belongs to."""
    reply, sampling, session = reply_options(
        {"raw": False, "save": "reply", "top_k": 3, "redundancy": 2, "deny": [NODE], "min_bits": 4}, SessionOptions()
    )
    assert reply == ReplyOptions(raw=False, save=Path("reply"))
    assert sampling == SamplingParams(top_k=3)
    assert session == SessionOptions(redundancy=2, route=RouteOptions(deny=frozenset([NODE]), min_bits=4))


def test_what_the_model_was_asked_for_holds_for_its_replies() -> None:
    """A reply's own keywords come on top; a whole struct replaces what the model says."""
    _, base = connect_options({"exact": True, "goal": "throughput"})
    assert base == SessionOptions(exact=True, route=RouteOptions(goal="throughput"))
    assert reply_options({"redundancy": 2}, base)[2] == SessionOptions(
        exact=True, redundancy=2, route=RouteOptions(goal="throughput")
    )
    assert reply_options({"options": SessionOptions()}, base)[2] == SessionOptions()


@pytest.mark.parametrize("stop", [".", ["."], (".",)])
def test_stop_may_be_one_text_or_several(stop: object) -> None:
    """As people write it."""
    assert reply_options({"stop": stop}, SessionOptions())[1].stop == (".",)


def test_pins_may_be_written_as_on_the_command_line() -> None:
    """A block or a span, and a node."""
    pins = {3: NODE, Span(4, 6): NODE}
    for given in (pins, [f"3={NODE}", f"4:6={NODE}"]):
        assert reply_options({"pins": given}, SessionOptions())[2].route.pins == pins


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"max_new_tokens": 3}, r"no option 'max_new_tokens' \(did you mean max_tokens\?\); there are .*max_tokens"),
        ({"max_token": 3}, r"no option 'max_token' \(did you mean max_tokens\?\)"),
        ({"do_sample": True}, r"no option 'do_sample' \(did you mean temperature\?\)"),
        ({"max_tokens": 0}, "max_tokens cannot be 0: it is a whole number from 1"),
        ({"pins": ["x=y"]}, "pins cannot be .*: it is BLOCK=NODE or START:STOP=NODE"),
        ({"row_codec": "fp8"}, "row_codec cannot be 'fp8': it is one of fp32, fp16, bf16"),
        ({"redundancy": 3}, "redundancy cannot be 3: it is a whole number from 1 to 2"),
        ({"save": 3}, "save cannot be 3: it is a path"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], text: str) -> None:
    """The error names the keyword."""
    with pytest.raises(UsageError, match=text):
        reply_options(given, SessionOptions())


def test_peers_are_tickets() -> None:
    """Several, or one text."""
    assert connect_options({"peers": ["a", "b"]})[0] == ConnectOptions(peers=("a", "b"))
    assert connect_options({"peers": "a"})[0] == ConnectOptions(peers=("a",))
    with pytest.raises(UsageError, match="head cannot be 'int3': it is one of float32, bfloat16, int8"):
        connect_options({"head": "int3"})
