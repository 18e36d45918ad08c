"""What the documentation says of the code is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from shoal.server.sessions.redirector import DIALS_AT_ONCE, DIALS_PER_S

ROOT = Path(__file__).parent.parent.parent
A_ROW = ROOT / "docs" / "concepts" / "a-row.md"
NAMED = re.compile(r"`([\w/]+\.py): ([\w.]+)`")


def defined(path: Path) -> set[str]:
    """The functions and classes of a module, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            members = (inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{inner.name}" for inner in members}
    return found


@pytest.mark.parametrize(("file", "name"), NAMED.findall(A_ROW.read_text()))
def test_what_a_rows_way_names_exists(file: str, name: str) -> None:
    """Every `file: function` on the page."""
    assert name in defined(ROOT / "src" / "shoal" / file)


def test_a_rows_way_is_short() -> None:
    """At most fifteen steps, each of which names a place."""
    steps = re.findall(r"^\d+\. .*?(?=^\d+\. |^\S|\Z)", A_ROW.read_text().split("\n## ")[0], re.M | re.S)
    assert 10 <= len(steps) <= 15
    assert all(NAMED.search(step) for step in steps)


def test_dials_for_a_client() -> None:
    """The bound that membership.md gives is the code's."""
    text = (ROOT / "docs" / "concepts" / "membership.md").read_text()
    assert (
        f"at most {DIALS_AT_ONCE} times at once and {DIALS_PER_S} times a second after that for one client"
        in " ".join(text.split())
    )
