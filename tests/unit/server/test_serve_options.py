"""What a server's owner may set, and what makes no sense together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.errors import UsageError
from shoal.options import options_of
from shoal.server import serve_options
from shoal.server.serve_options import MIN_MEMORY_BYTES, ServeOptions, default_memory_bytes, parse_bytes
from shoal.swarm.discovery.discovery_options import DiscoveryOptions
from shoal.swarm.membership.storage import PrivateSwarm
from shoal.types import MAX_NAME_CHARS, Span


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("800MB", 800 * 10**6),
        (" 4 gb ", 4 * 10**9),
        ("6.5GiB", 13 << 29),
        ("1mib", 1 << 20),
        ("1e3", 1000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """Units of ten and of two, in any case."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4TB", "many", "nan", "inf", "infGB"])
def test_what_is_no_size(text: str) -> None:
    """The error says what one looks like."""
    with pytest.raises(UsageError, match="800MB or 4GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"blocks": Span(0, 4), "num_blocks": 4}, "blocks"),
        ({"quantize": 7}, "quantize"),
        ({"quantize": 1}, "quantize"),
        ({"quantize": 16}, "quantize"),
        ({"quantize": 4.0}, "quantize"),
        ({"int8_rows": True}, "int8_rows"),
        ({"memory_bytes": MIN_MEMORY_BYTES - 1}, "memory_bytes"),
        ({"max_upload_bits_per_s": 0.0}, "max_upload_bits_per_s"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"name": "x" * (MAX_NAME_CHARS + 1)}, "name"),
        ({"name": "\x1b[31mred"}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"name": "\u202ebackwards"}, "name"),
        ({"kv_dtype": "int3"}, "kv_dtype"),
    ],
)
def test_values_that_make_no_sense(given: dict[str, Any], field: str) -> None:
    """Alone or together; the error names the field."""
    with pytest.raises(UsageError) as caught:
        ServeOptions(model="any", **given)
    assert caught.value.field == field


def test_a_private_server_is_not_looked_for(tmp_path: Path) -> None:
    """Its members find it by invites."""
    private = PrivateSwarm(name="home", home=tmp_path)
    with pytest.raises(UsageError, match="--lan or --public"):
        ServeOptions(model="any", private=private, discovery=DiscoveryOptions(lan=True))
    assert ServeOptions(model="any", private=private).private == private


def test_what_fits_together() -> None:
    """int8 rows go with quantised weights; an upload limit is given in Mbit/s."""
    assert ServeOptions(model="any", quantize=8, int8_rows=True).int8_rows
    parse = options_of(ServeOptions)["max_upload_bits_per_s"].info.parse
    assert parse is not None
    assert parse("2.5") == 2_500_000


def test_half_of_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a guess where that is unknown."""
    monkeypatch.setattr(
        serve_options.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__, raising=False
    )
    assert default_memory_bytes() == 2_048_000

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(serve_options.os, "sysconf", unknown, raising=False)
    assert default_memory_bytes() == 4 << 30


@pytest.mark.parametrize(("typed", "told"), [("63MB", "'63MB'"), ("-1", "'-1'"), ("0", "'0'")])
def test_the_least_memory_is_told_as_it_is(typed: str, told: str) -> None:
    """What was typed is refused in its own words, with a bound that is right."""
    memory = options_of(ServeOptions)["memory_bytes"]
    assert memory.taken("64MB") == MIN_MEMORY_BYTES
    assert memory.taken("66MB") == 66 * 10**6
    with pytest.raises(UsageError) as caught:
        memory.taken(typed)
    assert str(caught.value) == f"memory_bytes cannot be {told}: it is a size from 64MB, like 800MB or 4GB"


def test_shares() -> None:
    """A node's id and how many times a stranger's share it has; anything else is no share."""
    key = "ab" * 32
    assert ServeOptions.of({"model": "any", "shares": [f"{key}=3"]}).shares == {key: 3}
    for text in (
        "",
        "=",
        key,
        f"{key}=",
        f"{key}=0",
        f"{key}=1001",
        f"{key}=-1",
        f"{key}=x",
        f"{key.upper()}=2",
        "ab=2",
    ):
        with pytest.raises(UsageError, match="shares cannot be"):
            ServeOptions.of({"model": "any", "shares": [text]})
    for times in (0, -1, 1001, 1.5):
        with pytest.raises(UsageError, match="whole number"):
            ServeOptions(model="any", shares={key: times})  # type: ignore[dict-item]  # what it must not be
