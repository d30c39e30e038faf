"""`python tests/helpers/house_map.py > docs/map.md`: every module and the first sentence of its docstring."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOP = """# Where everything is

Every module and its idea. A package imports only packages above it in this list (`tests/test_rooms.py`).
"""


def first_sentence(file: Path) -> str:
    text = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])(?<!Dr\. )", text)[0].replace("|", "\\|")


def rooms() -> list[tuple[str, list[Path]]]:
    """Packages and their files, from the ground up; the loose modules first."""
    from test_rooms import FLOORS

    packages = {
        name: ROOT / "lit_rlvr" / name for floor in FLOORS for name in sorted(floor) if "datamodules" not in name
    }
    folders = [(f"lit_rlvr/{name}", path) for name, path in packages.items() if path.is_dir()]
    places = {name: height for height, floor in enumerate(FLOORS) for name in floor}
    folders += [("datamodules/reading", ROOT / "datamodules/reading"), ("datamodules", ROOT / "datamodules")]
    folders.sort(key=lambda pair: places[pair[0].removeprefix("lit_rlvr/").replace("/", ".")])
    return [(name, sorted(path.glob("*.py"))) for name, path in [("lit_rlvr", ROOT / "lit_rlvr"), *folders]]


def house_map() -> str:
    lines = [TOP]
    for name, files in rooms():
        about = first_sentence(next(file for file in files if file.name == "__init__.py"))
        lines += [f"\n## `{name}/`\n", f"{about}\n", "| file | idea |", "|---|---|"]
        lines += [f"| `{file.name}` | {first_sentence(file)} |" for file in files if file.name != "__init__.py"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(ROOT / "tests"))
    print(house_map(), end="")
