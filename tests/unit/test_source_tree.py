"""What holds for the source tree as a whole: names that mean one thing, imports that only go down."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.source_tree import cycles, imports, measures, modules, public_classes

TREES = modules()

MOST = {"untested_modules": 0, "late_attributes": 0, "foreign_writes": 42, "loose_tasks": 7}
"""What the package may have of each at most: lowered when there are fewer, never raised."""

PAIRS = {
    "__main__": "every command that is started with python -m",
    "families": "the package, and the bench that certifies it",
    "placement": "the package, and the bench that compares it with the optimum",
    "discovery": "the package and the interface in it, and the bench that measures it",
    "engine": "the package, and the bench that measures it",
    "kv": "the package, and the bench that measures its dtypes",
    "quant": "the package, and the bench that compares plans of bits",
    "quantize": "the package, and its command",
    "prefix": "the prefix cache, and the bench that measures it",
    "server": "the package and its main class",
    "client": "the package and its main class",
    "directory": "the package and its main class",
    "swarm": "the package, and the command for private swarms",
    "session": "the package and its main class",
}
"""Module names that stand in two packages on purpose."""


def test_a_public_class_name_means_one_thing() -> None:
    """No two public classes of the tree share a name."""
    assert {name: homes for name, homes in public_classes(TREES).items() if len(homes) > 1} == {}


def test_a_module_name_stands_in_one_package() -> None:
    """A module name is found in one package only, unless it is a pair on purpose."""
    homes = defaultdict(set)
    for name in TREES:
        package, _, last = name.rpartition(".")
        homes[last].add(package)
    assert {name for name, found in homes.items() if len(found) > 1} - set(PAIRS) == set()


def test_no_modules_import_one_another() -> None:
    """The import graph has no cycle, imports inside functions included."""
    known = set(TREES)
    graph = {name: set(imports(tree, known)) - {name} for name, tree in TREES.items()}
    assert cycles(graph) == []


@pytest.mark.parametrize("figure", MOST)
def test_the_tree_gets_no_harder_to_read(figure: str) -> None:
    """Modules without a test file, attributes set late or by another object, tasks without a group."""
    found = measures()
    assert found[figure] <= MOST[figure], found["untested"] if figure == "untested_modules" else figure  # type: ignore[operator]  # a number
