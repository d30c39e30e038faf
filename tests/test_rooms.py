"""The house: which room may import which, without circles, whatever the import hides in."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOOSE = 15
"""Modules that stand at the root of `lit_rlvr` at most."""
FLOORS = [
    {"compat", "doing", "errors", "printable", "seeds"},
    {"configs", "distributed", "files", "objectives", "terminal", "types"},
    {"policy", "returned", "rewards", "strategy"},
    {"advantages", "datamodules.reading", "diversity", "environments"},
    {"datamodules", "export", "training"},
    {"algorithms", "rollout"},
    {"evaluation", "plan", "run", "warm_start"},
    {"cli", "report"},
    {"__main__", "compare", "parity", "watch"},
    {"check"},
    {"init"},
]
"""Rooms from the ground up; each imports those below it only."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, faces (`__init__.py`) under the name of their package."""
    found = {}
    for top in ("lit_rlvr", "datamodules"):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


class Imports(ast.NodeVisitor):
    """All imports of a file: at its top, inside functions, and under TYPE_CHECKING."""

    def __init__(self, file: Path) -> None:
        self.names: list[tuple[str, str]] = []  # (module, name; "" = the module itself)
        self.visit(ast.parse(file.read_text()))

    def visit_Import(self, node: ast.Import) -> None:
        self.names += [(alias.name, "") for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.names += [(node.module or "", alias.name) for alias in node.names]


def graph() -> dict[str, set[str]]:
    """Module -> the modules it imports; a name from a package's face counts as the module that the face has it from."""
    files = modules()
    faces = {
        name: {what: module for module, what in Imports(file).names}
        for name, file in files.items()
        if file.name == "__init__.py"
    }

    def source(module: str, name: str) -> str | None:
        if f"{module}.{name}" in files:
            return f"{module}.{name}"
        if module in faces and name in faces[module]:
            return source(faces[module][name], name)
        return module if module in files and module not in faces else None

    return {
        name: {found for module, what in Imports(file).names if (found := source(module, what))} - {name, *faces}
        for name, file in files.items()
        if name not in faces
    }


def room(module: str) -> str:
    top, _, rest = module.partition(".")
    if top == "datamodules":
        return "datamodules.reading" if rest.startswith("reading.") else "datamodules"
    return rest.partition(".")[0]


def test_there_is_no_import_circle() -> None:
    try:
        list(graphlib.TopologicalSorter(graph()).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_run_downwards_only() -> None:
    height = {name: floor for floor, rooms in enumerate(FLOORS) for name in rooms}
    upwards = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if room(module) != room(other) and height[room(module)] <= height[room(other)]
    ]
    assert not upwards


def test_few_modules_are_loose() -> None:
    loose = [name for name in modules() if name.count(".") == 1 and name.startswith("lit_rlvr.")]
    files = [name for name in loose if modules()[name].name != "__init__.py"]
    assert len(files) <= LOOSE, files


def test_an_import_is_found_wherever_it_hides(tmp_path: Path) -> None:
    """This test's own eyes: it would be green for a tree that it cannot read."""
    found = graph()
    assert len(found) > 150
    assert "lit_rlvr.training.module" in found["lit_rlvr.rollout.callback"], "at the top of a file"
    assert "lit_rlvr.policy.policy" in found["lit_rlvr.rollout.engine"], "under TYPE_CHECKING"
    assert "lit_rlvr.cli.lightning_cli" in {other for others in found.values() for other in others}
