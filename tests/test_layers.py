"""Imports go downwards only, between the rooms of the core and between plugins, and nowhere in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    {"errors", "files", "texts", "words", "console", "interrupts"},
    {"plugins"},
    {"config"},
    {"core"},
    {"ops", "methods", "metrics"},
    {"engine", "testing"},
    {"api", "benchmark"},
    {"cli"},
    {"__init__", "__main__"},
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# What a plugin may import beside the core.
ALLOWED = {"trellis": {"shapes3d"}, "trellis2": {"shapes3d", "trellis"}, "kernels": {"shapes3d"}}


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from at_run_time(child)


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by dotted name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The known modules that a file imports, at its top or within functions."""
    found = set()
    for node in at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known.keys()) or {node.module}
    return found & known.keys()


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


CORE = modules(ROOT / "fewstep")
GRAPH = {name: imports(path, CORE) - {name} for name, path in CORE.items()}
PLUGINS = {p.parent.name: p for p in sorted((ROOT / "plugins").glob("*/fewstep_*")) if p.is_dir()}


def upwards(graph: dict[str, set[str]]) -> list[str]:
    return [f"{a} imports {b}" for a, found in graph.items() for b in found if HEIGHT[room(b)] > HEIGHT[room(a)]]


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that can reach themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph.get(name, ())
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_every_room_has_its_floor() -> None:
    assert {room(name) for name in CORE} <= HEIGHT.keys()


def test_imports_go_downwards() -> None:
    # `import fewstep` for the version is no import of the whole: the package loads its API on use.
    assert upwards({name: found - {"fewstep"} for name, found in GRAPH.items()}) == []


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circles({name: found - {"fewstep"} for name, found in GRAPH.items() if name != "fewstep"}) == []


def test_rooms_of_one_floor_do_not_import_each_other_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for name, found in GRAPH.items():
        rooms.setdefault(room(name), set()).update(room(other) for other in found - {"fewstep"})
    assert circles({name: found - {name} for name, found in rooms.items()}) == []


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_import_the_core_and_little_else(plugin: str) -> None:
    others = {other.name: name for name, other in PLUGINS.items() if name != plugin}
    found = set()
    for path in PLUGINS[plugin].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            found |= {others[top] for top in (name.partition(".")[0] for name in names) if top in others}
    assert found <= ALLOWED.get(plugin, set())


def test_the_checks_can_fail() -> None:
    assert upwards({"fewstep.core.layout": {"fewstep.engine.budget"}}) == [
        "fewstep.core.layout imports fewstep.engine.budget"
    ]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
