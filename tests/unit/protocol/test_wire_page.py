"""docs/wire.md says what the code does: its limits, messages, fields, codes and first messages."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from shoal.protocol import frames, messages
from shoal.protocol.messages import QUESTIONS, Message, Status, tag
from shoal.protocol.refusals import CODES, FAILED
from shoal.swarm.directory import directory, records
from shoal.swarm.directory.records import ServerRecord
from shoal.swarm.membership import credentials
from tests.support.any_message import MESSAGES

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "wire.md").read_text()
RECORDS = (DOCS / "concepts" / "records.md").read_text()


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the table whose header row begins with this cell."""
    lines = iter(page.splitlines())
    next(line for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    table: list[list[str]] = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def named(cell: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def fields_in_braces() -> dict[str, set[str]]:
    """For each message, the fields that any mention of it names: `type {one, two: what it is}`."""
    found: dict[str, set[str]] = defaultdict(set)
    for kind, inside in re.findall(r"`([a-z_]+) \{([^}]*)\}`", PAGE):
        found[kind] |= {part.split(":")[0].strip() for part in inside.split(",") if part.strip(" …")}
    return found


LIMITS = {name: value for name, value, _ in rows(PAGE, "constant")}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    """Each constant of the page has its value in the code."""
    homes = (messages, frames, directory, records)
    values = {vars(home)[name.strip("`")] for home in homes if name.strip("`") in vars(home)}
    assert values == {int(LIMITS[name].replace(",", ""))}


def test_no_limit_is_missing() -> None:
    """Every limit of a field that travels stands on the page."""
    bytes_ = {f"`{name}`" for name in vars(messages) if name.startswith("MAX_") and name.endswith("_BYTES")}
    assert bytes_ <= set(LIMITS)


@pytest.mark.parametrize("kind", MESSAGES, ids=tag)
def test_messages(kind: type[Message]) -> None:
    """Each message stands on the page with just the fields that it has."""
    said = fields_in_braces()[tag(kind)]
    if kind is Status:
        said = {name for row in rows(PAGE, "field") for name in named(row[0])}
    assert f"`{tag(kind)}" in PAGE
    assert said == set(kind.__struct_fields__)


def test_no_message_is_made_up() -> None:
    """What stands on the page as a message is one."""
    assert set(fields_in_braces()) <= {tag(kind) for kind in MESSAGES}


def test_codes() -> None:
    """The codes of refusals, no more and no fewer."""
    assert {named(row[0])[0] for row in rows(PAGE, "code")} == {*(row.code for row in CODES), FAILED}


def test_first_messages() -> None:
    """What a channel may begin with, and whom it asks."""
    said = {(named(row[0])[0], "blocks" in row[2]) for row in rows(PAGE, "first message")}
    assert said == {(tag(question.request), question.per_span) for question in QUESTIONS}


def test_statements_of_private_swarms() -> None:
    """The limit of each signed statement."""
    limits = {named(row[0])[0].split()[1]: int(row[-1].split()[0].replace(",", "")) for row in rows(PAGE, "label")}
    assert limits == {
        "invite": messages.MAX_INVITE_BYTES,
        "delegation": credentials.MAX_DELEGATION_BYTES,
        "certificate": messages.MAX_CERTIFICATE_BYTES,
        "revocations": messages.MAX_REVOCATIONS_BYTES,
    }


def test_records() -> None:
    """The page on records names every field, and the limit."""
    assert {name for row in rows(RECORDS, "field") for name in named(row[0])} == set(ServerRecord.__struct_fields__)
    assert f"at most {messages.MAX_RECORD_BYTES:,} bytes" in RECORDS
