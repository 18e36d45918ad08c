"""What the documentation says of the code is so, and it is written as the project writes."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

import shoal
from bench.registry import BENCHES
from tests.pages import (
    CONCEPTS,
    DECISIONS,
    GUIDES,
    HISTORY,
    README,
    ROOT,
    SENTENCE_WORDS,
    TOP,
    anchors,
    code_blocks,
    definitions,
    files,
    inline_code,
    links,
    long_lines,
    long_sentences,
    options,
    sentences,
    words,
)

PAGES = [README, *TOP, *CONCEPTS, *GUIDES]
PRESENT = [page for page in PAGES if page not in HISTORY]
PROSE = [README, *CONCEPTS, *GUIDES]
OTHERS_WORDS = {"BufferedProtocol", "OpenSSL", "RmsNorm", "LayerNorm", "NoneType"}
"""Names in backquotes that belong to other projects."""

ENVIRONMENT = {"TORCH", "MKL_CBWR", "OMP_WAIT_POLICY", "HF_HOME"}
"""Variables of other programs."""

MOST_LONG_SENTENCES = 0
"""On guides and concept pages together; the README has none."""

AN_OPTION = ROOT / "docs" / "adding-an-option.md"
"""Its example is an option that there is not."""

A_ROW = ROOT / "docs" / "concepts" / "a-row.md"
NAMED = re.compile(r"`([\w/]+\.py): ([\w.]+)`")


def named(page: Path) -> str:
    """A page's name in a test's id."""
    return str(page.relative_to(ROOT))


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


@pytest.mark.parametrize("page", PRESENT, ids=named)
def test_files_exist(page: Path) -> None:
    """Every file of code that a page names in backquotes."""
    said = {
        match for code in inline_code(page.read_text()) for match in re.findall(r"[\w/.-]+\.(?:py|h|cpp|svg)\b", code)
    }
    assert said <= files()


@pytest.mark.parametrize("page", PRESENT, ids=named)
def test_classes_exist(page: Path) -> None:
    """Every class that a page names in backquotes, and the member behind its dot."""
    missing = set()
    classes, others = definitions()
    for code in inline_code(page.read_text()):
        for name, member in re.findall(r"(?<![\w/$.-])(?:shoal\.)?([A-Z]\w*[a-z]\w*[A-Z]\w*)(?:\.(\w+))?", code):
            known = member in classes[name] if member and name in classes else name in classes or name in others
            if not known and name not in OTHERS_WORDS:
                missing.add(code)
    assert not missing


@pytest.mark.parametrize("page", PRESENT, ids=named)
def test_constants_exist(page: Path) -> None:
    """Every constant that a page names in backquotes alone."""
    said = {code for code in inline_code(page.read_text()) if re.fullmatch(r"[A-Z]+(?:_[A-Z0-9]+)+", code)}
    assert {name for name in said if name not in definitions().others and name not in ENVIRONMENT} == set()


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS, ROOT / "native" / "README.md"], ids=named)
def test_links_resolve(page: Path) -> None:
    """Every relative link leads to a file, and to a heading or an id in it."""
    broken = []
    for target in links(page.read_text()):
        path, _, place = target.partition("#")
        found = page.parent / path if path else page
        if re.match(r"\w+:", target):
            continue
        if not found.exists() or (place and place not in anchors(found.read_text())):
            broken.append(target)
    assert not broken


def shoal_commands(text: str) -> list[tuple[str, str]]:
    """The command and the rest of every `shoal …` in code."""
    lines = [line.partition(" #")[0] for block in code_blocks(text) for line in block.splitlines()]
    found = []
    for code in [*lines, *inline_code(text)]:
        for part in re.split(r"(?:^|\s)shoal (?=[a-z])", code)[1:]:
            names = part.split()
            if names[-1] == "1" or names == ["node"]:
                continue  # the label of a signed statement, and the name in certificates
            command = " ".join(names[:2]) if names[0] == "swarm" and len(names) > 1 else names[0]
            found.append((command, part))
    return found


@pytest.mark.parametrize("page", [page for page in PRESENT if page != AN_OPTION], ids=named)
def test_commands_exist(page: Path) -> None:
    """Every command of `shoal`, with the options that stand beside it."""
    known = options()
    for command, rest in shoal_commands(page.read_text()):
        assert command.rstrip(",`") in known, rest
        unknown = set(re.findall(r"(?<!\S)--[a-z][\w-]*", rest)) - known[command]
        assert not unknown, rest


@pytest.mark.parametrize("page", PRESENT, ids=named)
def test_options_exist(page: Path) -> None:
    """Every option that stands alone in backquotes belongs to some command of ours."""
    ours = {option for app in ("shoal", "bench", "simulator") for known in options(app).values() for option in known}
    said = {name for code in inline_code(page.read_text()) for name in re.findall(r"^--[a-z][\w-]*", code)}
    assert said <= ours


@pytest.mark.parametrize("page", [*PRESENT, ROOT / "Makefile"], ids=named)
def test_benches_exist(page: Path) -> None:
    """Every `python -m bench NAME` and its options, and those of `python -m simulator`."""
    text = page.read_text()
    for name, rest in re.findall(r"python -m bench ([\w-]+)([^`\n]*)", text):
        assert name in BENCHES or name == "NAME"
        assert set(re.findall(r"--[a-z][\w-]*", rest)) <= options("bench")[""]
    for rest in re.findall(r"python -m simulator([^`\n]*)", text):
        assert set(re.findall(r"--[a-z][\w-]*", rest)) <= options("simulator")[""]


@pytest.mark.parametrize("page", PRESENT, ids=named)
def test_targets_exist(page: Path) -> None:
    """Every `make TARGET` is one of the Makefile's."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    text = page.read_text()
    said = {
        code for code in [*inline_code(text), *"\n".join(code_blocks(text)).splitlines()] if code.startswith("make ")
    }
    assert {code.split()[1] for code in said} <= targets


@pytest.mark.parametrize("page", PRESENT, ids=named)
def test_variables_exist(page: Path) -> None:
    """Every variable of the environment that is ours is read by the code."""
    code = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert {
        name for name in re.findall(r"\$?\b(SHOAL_[A-Z]+)\b(?=[=`/) ])", page.read_text()) if name not in code
    } == set()


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_python_on_pages(page: Path) -> None:
    """Python on a page compiles, and what it takes from `shoal` is public."""
    for block in re.findall(r"^ *```python\n(.*?)^ *```$", page.read_text(), re.M | re.S):
        tree = compile(block, str(page), "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "shoal":
                assert node.attr in shoal.__all__
            if isinstance(node, ast.ImportFrom) and node.module == "shoal":
                assert {alias.name for alias in node.names} <= set(shoal.__all__)


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "architecture.md"], ids=named)
def test_layers(page: Path) -> None:
    """The layer map is the import contract's, from top to bottom."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    expected = [{name.strip().removeprefix("shoal.") for name in layer.split("|")} for layer in contract]
    rows = page.read_text().split("| layer |")[1].splitlines()[2:]
    said = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in rows if row.startswith("|")]
    assert said[: len(expected)] == expected


def test_the_picture_is_whole() -> None:
    """The README's picture can be parsed, and says in words what it shows."""
    picture = ElementTree.parse(ROOT / "docs" / "swarm.svg").getroot()
    assert {"title", "desc"} <= {child.tag.rpartition("}")[2] for child in picture}


def test_few_figures_up_front() -> None:
    """The README shows at most eight measured rows."""
    measured = README.read_text().split("## Measured")[1].split("\n## ")[0]
    assert 1 <= len(re.findall(r"^\| ", measured, re.M)) - 1 <= 8


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=named)
def test_one_width(page: Path) -> None:
    """Lines are wrapped; tables cannot be."""
    assert long_lines(page.read_text()) == []


def test_sentences_are_short() -> None:
    """The README has no long sentence, the guides and concept pages few."""
    assert long_sentences(README.read_text()) == []
    assert sum(len(long_sentences(page.read_text())) for page in PROSE) <= MOST_LONG_SENTENCES


def test_sentences_are_found() -> None:
    """Code counts as one word, a link as its text, and an item of a list stands alone."""
    text = (
        "# Head\n\nOne `two words` here. A [link of four words](x.md) ends.\n\n- an item\n- another\n\n| a | table |\n"
    )
    assert [words(sentence) for sentence in sentences(text)] == [3, 6, 2, 1]
    assert long_sentences("word " * (SENTENCE_WORDS + 1)) != []


@pytest.mark.parametrize("page", [*PROSE, *DECISIONS], ids=named)
def test_plain_words(page: Path) -> None:
    """The subject of a sentence has a name."""
    said = " ".join(sentence.lower() for sentence in sentences(page.read_text()))
    assert not re.findall(r"\b(whoever|somebody|nobody|everybody|so many)\b", said)
