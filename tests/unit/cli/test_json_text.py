"""What commands print as JSON."""

from __future__ import annotations

import msgspec

from shoal.cli.json_text import json_line, whole
from shoal.types import Span


class Inner(msgspec.Struct, omit_defaults=True):
    """Fields that are left out on the wire."""

    count: int = 0
    span: Span = Span(0, 1)


class Outer(msgspec.Struct, omit_defaults=True, tag="outer"):
    """The same, with a name."""

    inner: Inner
    many: tuple[Inner, ...] = ()


def test_fields_at_their_defaults_are_there() -> None:
    """However deep; spans stay pairs, names stay."""
    inner = {"count": 0, "span": [0, 1]}
    assert whole(Outer(Inner())) == {"type": "outer", "inner": inner, "many": []}
    assert whole([{"one": Inner()}, None, "x", 1.5]) == [{"one": inner}, None, "x", 1.5]


def test_json_is_the_same_to_a_program() -> None:
    """What a terminal would obey stands escaped in it."""
    line = json_line({"name": "\x9b2J\u202e", "text": "ü\n"})
    assert ascii(line) == ascii('{"name":"\\u009b2J\\u202e","text":"ü\\n"}')
