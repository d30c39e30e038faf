"""Which package may import which, without circles, whatever the import hides in."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LAYERS = [
    {""},
    {"errors", "objectives", "speech"},
    {"common"},
    {"answers", "media", "sampling"},
    {"configs", "types"},
    {"options"},
    {"advantages", "conformance", "distributed", "workers"},
    {"policy", "rewards", "strategy"},
    {"plan"},
    {"datamodules.reading", "engines", "environments"},
    {"training"},
    {"algorithms", "datamodules"},
    {"agents"},
    {"rollout"},
    {"sizing"},
    {"run"},
    {"evaluation"},
    {"commands.doctor", "commands.evaluate", "commands.export", "commands.filter", "commands.plan", "commands.report"},
    {"commands.preview", "commands.registry", "commands.split", "commands.tune"},
    {"cli", "commands.watch"},
    {"__main__", "commands.check", "commands.compare", "commands.serve"},
    {"commands.init"},
]
"""Packages in layers: each imports only those in earlier layers, and itself; "" is `lit_rlvr` itself."""
LEFT = ("lit_rlvr.rewards.function", "lit_rlvr.rewards")
"""The only import that closes a circle: a function's reward looks for ours by name in the whole package."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, `__init__.py` under the name of their package."""
    found = {}
    for top in ("lit_rlvr", "datamodules"):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = ("lit_rlvr", *parts) if top == "datamodules" else parts
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
    """Module or package -> those it imports; a name that a package only exports counts as the module it comes from."""
    files = modules()
    exports = {
        name: {what: module for module, what in Imports(file).names}
        for name, file in files.items()
        if file.name == "__init__.py"
    }

    def source(module: str, name: str) -> str | None:
        if f"{module}.{name}" in files:
            return f"{module}.{name}"
        if module in exports and name in exports[module]:
            return source(exports[module][name], name)
        return module if module in files else None

    return {
        name: {found for module, what in Imports(file).names if (found := source(module, what))} - {name}
        for name, file in files.items()
    }


def package_of(module: str) -> str:
    """The layer's name of a module: its package, or for data modules and commands the package inside that."""
    parts = module.split(".")[1:]
    nested = parts[:1] == ["commands"] or parts[:2] == ["datamodules", "reading"]
    return ".".join(parts[: 1 + nested])


def test_there_is_no_import_circle() -> None:
    try:
        imports = {module: {other for other in others if (module, other) != LEFT} for module, others in graph().items()}
        list(graphlib.TopologicalSorter(imports).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_run_downwards_only() -> None:
    height = {name: layer for layer, names in enumerate(LAYERS) for name in names}
    upwards = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if package_of(module) != package_of(other) and height[package_of(module)] <= height[package_of(other)]
    ]
    assert not upwards


def test_contributing_has_the_same_layers() -> None:
    """Its second block has a line for each layer, with the commands as one package; its first block, the map, has the
    same packages."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2]
    plain, lines = re.findall(r"```text\n(.*?)```", text, re.S)[:2]
    named = r"([\w/]+?)(?:/|\.py)(?=[,\s])"
    shown = [set(re.findall(named, line.partition("#")[0])) for line in lines.splitlines(keepends=True)]
    expected, seen = [], {""}
    for layer in LAYERS:
        packages = {"commands" if name.startswith("commands.") else name.replace(".", "/") for name in layer} - seen
        seen |= packages
        if packages:
            expected.append(packages)
    assert shown == expected
    assert sorted(re.findall(named, plain)) == sorted(seen - {""})
