"""The source tree as data: its modules, what they import, and figures that say how well it can be read.

`python -m tests.source_tree` prints the figures; docs/decisions/0010-the-house.md has them before and after the rebuilding.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"shoal": Path("src/shoal"), "bench": Path("bench"), "simulator": Path("simulator")}
TASK_MAKERS = {"create_task", "ensure_future"}


def modules(root: Path = ROOT, packages: tuple[str, ...] = tuple(PACKAGES)) -> dict[str, ast.Module]:
    """Every module of these packages by its dotted name."""
    found = {}
    for name in packages:
        for path in sorted((root / PACKAGES[name]).rglob("*.py")):
            parts = [name, *path.relative_to(root / PACKAGES[name]).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imports(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """The known modules that a module imports, inside functions too; not those for type checking only."""
    for node in _at_run_time(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if (found := inner if inner in known else node.module) in known:
                    yield found
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _at_run_time(node)


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import one another (strongly connected components, Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[set[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            groups.append(group)

    for name in graph:
        if name not in order:
            visit(name)
    return [group for group in groups if len(group) > 1]


def public_classes(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """The modules in which each public class name is defined."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    return found


def _classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from target.elts if isinstance(target, ast.Tuple) else [target]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        yield node.target


def _own_attributes(function: ast.AST) -> set[str]:
    return {
        target.attr
        for node in ast.walk(function)
        for target in _targets(node)
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }


def attributes_and_methods(cls: ast.ClassDef) -> tuple[int, int]:
    """How many attributes a class assigns on itself or declares, and how many methods it has."""
    functions = [node for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    declared = {
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return len(declared.union(*map(_own_attributes, functions))), len(functions)


def foreign_writes(tree: ast.Module) -> int:
    """Assignments to an attribute of an object that is not `self`, `cls` or a module-level name."""
    count = 0
    for node in ast.walk(tree):
        for target in _targets(node):
            if isinstance(target, ast.Attribute):
                base = target.value
                count += not (isinstance(base, ast.Name) and base.id in ("self", "cls"))
    return count


def late_attributes(tree: ast.Module) -> int:
    """Attributes of `self` that a method other than `__init__` assigns first."""
    count = 0
    for cls in _classes(tree):
        functions = [node for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        made = set().union(
            *(_own_attributes(node) for node in functions if node.name in ("__init__", "__post_init__", "__new__"))
        )
        made |= {
            node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        later = set().union(
            *(_own_attributes(node) for node in functions if node.name not in ("__init__", "__post_init__"))
        )
        count += len(later - made) if any(node.name == "__init__" for node in functions) else 0
    return count


def loose_tasks(tree: ast.Module) -> int:
    """Tasks that are made outside a task group."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TASK_MAKERS:
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            count += not re.search(r"group|tasks", name)
    return count


def untested_modules(trees: dict[str, ast.Module], root: Path = ROOT) -> list[str]:
    """Modules with code of which no test file bears the name."""
    tests = {path.stem for path in (root / "tests").rglob("test_*.py")}
    return [
        name
        for name, tree in trees.items()
        if any(isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) for node in tree.body)
        and f"test_{name.rpartition('.')[2]}" not in tests
    ]


def measures(root: Path = ROOT) -> dict[str, object]:
    """All figures of the package that is installed (`src/shoal`)."""
    trees = modules(root, ("shoal",))
    sizes = {
        f"{name}.{cls.name}": attributes_and_methods(cls) for name, tree in trees.items() for cls in _classes(tree)
    }
    widest = max(sizes, key=lambda name: sizes[name])
    most_methods = max(sizes, key=lambda name: sizes[name][1])
    lines = sum(len(path.read_text().splitlines()) for path in (root / PACKAGES["shoal"]).rglob("*.py"))
    untested = untested_modules(trees, root)
    return {
        "runtime_lines": lines,
        "modules": len(trees),
        "widest_class": f"{widest}: {sizes[widest][0]} attributes, {sizes[widest][1]} methods",
        "most_methods": f"{most_methods}: {sizes[most_methods][0]} attributes, {sizes[most_methods][1]} methods",
        "foreign_writes": sum(map(foreign_writes, trees.values())),
        "files_with_foreign_writes": sum(foreign_writes(tree) > 0 for tree in trees.values()),
        "late_attributes": sum(map(late_attributes, trees.values())),
        "loose_tasks": sum(map(loose_tasks, trees.values())),
        "public_names_with_two_meanings": sum(len(found) > 1 for found in public_classes(trees).values()),
        "untested_modules": len(untested),
        "untested": untested,
    }


if __name__ == "__main__":
    print(json.dumps(measures(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT), indent=1))
