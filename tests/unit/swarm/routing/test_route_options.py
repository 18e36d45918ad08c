"""What a client may ask of a route, as text and as values."""

from __future__ import annotations

import pytest

from shoal.errors import UsageError
from shoal.options import options_of
from shoal.swarm.routing.route_options import RouteOptions
from shoal.types import Span

PEER = "ab" * 32


def parsed(name: str, texts: list[str]) -> object:
    """What the flag of this option makes of these texts."""
    parse = options_of(RouteOptions)[name].info.parse
    assert parse is not None
    return parse(texts)


def test_pins_are_of_blocks_and_spans() -> None:
    """Several, in one option."""
    assert parsed("pins", [f"3={PEER}", f"4:8={PEER}"]) == {3: PEER, Span(4, 8): PEER}


@pytest.mark.parametrize("text", ["", "3", "3=", f"x={PEER}", f"-1={PEER}", f"={PEER}", f"8:4={PEER}", f"a:b={PEER}"])
def test_what_is_no_pin(text: str) -> None:
    """The error says how one is written."""
    with pytest.raises(UsageError, match=r"START:STOP"):
        parsed("pins", [text])


def test_peers_are_a_set() -> None:
    """Of one or of several."""
    assert parsed("deny", ["a", "b", "a"]) == {"a", "b"}
    assert parsed("allow", [PEER]) == {PEER}


@pytest.mark.parametrize(
    ("option", "value"),
    [("goal", "speed"), ("min_bits", -1.0), ("min_bits", 33.0), ("max_kl", -0.1), ("num_tokens", -1)],
)
def test_what_makes_no_sense_is_named(option: str, value: object) -> None:
    """By its field."""
    with pytest.raises(UsageError, match=option) as caught:
        RouteOptions(**{option: value})  # type: ignore[arg-type]
    assert caught.value.field == option


def test_sessions_set_some_options_themselves() -> None:
    """These have no flag."""
    hidden = {name for name, one in options_of(RouteOptions).items() if not one.info.shown}
    assert hidden == {"num_tokens", "numerics", "same_bits", "broken_links"}
