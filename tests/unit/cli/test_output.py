"""What commands print as JSON."""

from __future__ import annotations

import msgspec
import pytest

from shoal.cli.output import print_json, whole
from shoal.protocol.messages import Status
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


def test_a_server_s_load_has_all_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """A script can rely on each of them."""
    fields = {field.name for field in msgspec.structs.fields(Status) if field.required}
    status = msgspec.convert(dict.fromkeys(fields, 1) | {"type": "status"}, Status, strict=False)
    print_json(status)
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert set(shown) >= set(Status.__struct_fields__)
