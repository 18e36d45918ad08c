"""What every hop of a session is asked for, and who says where its routes come from."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from shoal.client.client import AsyncClient
from shoal.client.client_options import SessionOptions
from shoal.client.session.planner import Planner, SessionSpec
from shoal.protocol.messages import RowCodec
from shoal.types import ModelSpec, PeerId, Span
from tests.records import FINGERPRINT
from tests.unit.client.session.hops import FakePlanner

MODEL = ModelSpec("tiny", FINGERPRINT, 12, 48)


@pytest.mark.parametrize(("codec", "row_bytes"), [("fp32", 192), ("fp16", 96), ("bf16", 96)])
def test_a_rows_size_follows_from_its_codec(codec: RowCodec, row_bytes: int) -> None:
    """48 numbers of four bytes or of two."""
    spec = SessionSpec(MODEL, Span(0, 12), PeerId("ab" * 32), SessionOptions(row_codec=codec))
    assert spec.row_bytes == row_bytes
    assert spec.resumed == 0


@pytest.mark.parametrize("kind", [AsyncClient, FakePlanner])
def test_a_client_is_a_planner(kind: type) -> None:
    """It knows all that a session asks of one; so does what stands in for it in tests."""
    asked = {name for name in vars(Planner) if not name.startswith("_")}
    assert {name for name in asked if not hasattr(kind, name)} == set()
    for name in asked - {"dialler"}:
        theirs, ours = get_type_hints(getattr(kind, name)), get_type_hints(getattr(Planner, name))
        assert theirs.keys() == ours.keys()
