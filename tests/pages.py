"""The documentation as data: its prose, sentences, names, links and commands.

`python -m tests.pages` prints the sentences that are too long, and how many each page has.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import typer

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
CONCEPTS = sorted((ROOT / "docs" / "concepts").glob("*.md"))
TOP = sorted((ROOT / "docs").glob("*.md"))
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
README = ROOT / "README.md"
HISTORY = {ROOT / "docs" / "log.md"}
"""Pages that tell of names and words of another day."""

WIDTH = 120
SENTENCE_WORDS = 25
CODE_FOLDERS = ("src", "bench", "simulator", "tests", "native", "examples")

_FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)]*)\)")
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s+", re.M)


def code_blocks(text: str) -> list[str]:
    """What stands between fences, without them."""
    return ["\n".join(block.splitlines()[1:-1]) for block in _FENCE.findall(text)]


def inline_code(text: str) -> list[str]:
    """What stands in backquotes outside of fences, on one line each."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", _FENCE.sub("", text))]


def links(text: str) -> list[str]:
    """The targets of all links and pictures."""
    return [target for _, target in _LINK.findall(_FENCE.sub("", text))]


def anchors(text: str) -> set[str]:
    """What a link may name after `#`: headings as GitHub spells them, and ids."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.M)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def _paragraphs(text: str) -> Iterator[str]:
    """Prose only: no code, tables, headings, comments; each list item is one."""
    kept = []
    for line in re.sub(r"<!--.*?-->", "", _FENCE.sub("", text), flags=re.S).splitlines():
        if line.startswith(("#", "|", "    ")) or line.lstrip().startswith("|"):
            kept.append("")
        else:
            kept.append(f"\n{line}" if _ITEM.match(line) else line)
    for paragraph in re.split(r"\n\s*\n", "\n".join(kept)):
        if paragraph.strip():
            yield " ".join(_ITEM.sub("", paragraph).split())


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page's prose; code counts as one word, a link as its text."""
    for paragraph in _paragraphs(text):
        plain = re.sub(r"`[^`]+`", "X", _LINK.sub(r"\1", paragraph)).replace("*", "")
        yield from (part for part in re.split(r'(?<=[.!?])["\')]*\s+(?=["\'(]?[A-Z0-9])', plain) if part.strip())


def words(sentence: str) -> int:
    """How many words a sentence has; signs alone are none."""
    return sum(any(sign.isalnum() for sign in word) for word in sentence.split())


def long_sentences(text: str) -> list[str]:
    """Those of more than `SENTENCE_WORDS` words."""
    return [sentence for sentence in sentences(text) if words(sentence) > SENTENCE_WORDS]


def long_lines(text: str) -> list[str]:
    """Lines that are wider than `WIDTH`; tables, and what commands print, cannot be wrapped."""
    prose = _FENCE.sub("", text)
    return [line for line in prose.splitlines() if len(line) > WIDTH and not line.lstrip().startswith("|")]


class Definitions(NamedTuple):
    """The classes of the tree, each with the names in its body or on `self`; and all other names that the tree assigns."""

    classes: dict[str, set[str]]
    others: set[str]


def _members(cls: ast.ClassDef) -> set[str]:
    found = {getattr(node, "name", "") for node in cls.body}
    for node in ast.walk(cls):
        if isinstance(node, ast.AnnAssign | ast.Assign):
            for target in [node.target] if isinstance(node, ast.AnnAssign) else node.targets:
                found.add(getattr(target, "id", "") or getattr(target, "attr", ""))
    return found


@cache
def definitions() -> Definitions:
    """What the tree defines, macros of the compiled library included."""
    classes: dict[str, set[str]] = {}
    others: set[str] = set()
    for folder in CODE_FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    classes.setdefault(node.name, set()).update(_members(node))
            for node in tree.body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
                others.update(getattr(target, "id", "") or getattr(target, "name", "") for target in targets)
    for path in (ROOT / "native" / "src").iterdir():
        others.update(re.findall(r"#define (\w+)", path.read_text()))
    return Definitions(classes, others)


@cache
def files() -> frozenset[str]:
    """Every file of the code, as it may be named: from the root, from `src/shoal`, from any folder below."""
    found = set()
    for folder in (*CODE_FOLDERS, "docs"):
        for path in (ROOT / folder).rglob("*.*"):
            parts = path.relative_to(ROOT).parts
            found.update("/".join(parts[index:]) for index in range(len(parts)))
    return frozenset(found)


@cache
def options(app: str = "shoal") -> dict[str, frozenset[str]]:
    """The options of each command of `shoal`, as "serve" or "swarm create"; of bench and simulator under ""."""
    if app == "bench":
        from bench.__main__ import make_app
    elif app == "simulator":
        from simulator.__main__ import make_app
    else:
        from shoal.cli.main import make_app
    found: dict[str, frozenset[str]] = {}

    def walk(command: object, name: str) -> None:
        parameters = getattr(command, "params", [])
        known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        found[name] = frozenset(known | {"--help"})
        for inner, child in getattr(command, "commands", {}).items():
            walk(child, f"{name} {inner}".strip())

    walk(typer.main.get_command(make_app()), "")
    return found


if __name__ == "__main__":
    for page in (README, *GUIDES, *CONCEPTS, *TOP):
        found = [] if page in HISTORY else long_sentences(page.read_text())
        print(f"{len(found):3} {len(long_lines(page.read_text())):3} {page.relative_to(ROOT)}")
        for sentence in found:
            print(f"      {words(sentence)}: {sentence}")
