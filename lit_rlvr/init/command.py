"""`lit-rlvr init FOLDER`: write a small project of your own, which `lit-rlvr fit` and `pytest` run as it is."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from lit_rlvr.configs import Parser
from lit_rlvr.errors import UserError
from lit_rlvr.files import check_writable, write_atomically
from lit_rlvr.terminal import show_result

PROJECTS = Path(__file__).parent / "projects"
KINDS = ("task", "algorithm", "advantage", "environment", "vision")
NAME = "my_task"
"""The module's name in `projects/`."""


def run(command: str, arguments: list[str]) -> None:
    """Run the command line of `init`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument("folder", type=str, help="folder to write; it is new or empty, and its name is the module's")
    parser.add_argument("--kind", type=str, default="task", help=f"what the project is about: {', '.join(KINDS)}")
    config = parser.parse_args(arguments)
    files = [str(path) for path in init(Path(config.folder), config.kind)]
    then = f"cd {config.folder}; pytest; lit-rlvr fit --config config.yaml"
    show_result({"files": files, "next": then}, lambda: print(*files, then, sep="\n"))


def init(folder: Path, kind: str = "task") -> list[Path]:
    """Write a project: a module, its tests, a config and a README.

    Args:
        folder: a new or empty folder, which gives the module its name.
        kind: one of `KINDS`.

    Returns:
        The files written.

    Raises:
        UserError: there is no such kind, the folder is not empty or not writable, or its name is no module name.
    """
    if kind not in KINDS:
        raise UserError(f"--kind: there is no kind {kind!r}; kinds: {', '.join(KINDS)}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another name")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another folder, or remove its files first")
    name = module_name(folder.absolute().name)
    check_writable(folder, "init")
    written = []
    for source in sorted(path for path in (PROJECTS / kind).iterdir() if path.is_file()):
        path = folder / source.name.replace(NAME, name)
        write_atomically(path, source.read_text().replace(NAME, name))
        written.append(path)
    return written


def module_name(folder: str) -> str:
    """Return the module name for a folder's name: `my_task` for `my-task`.

    Raises:
        UserError: it is no valid name, or that of an installed module, which Python would import instead.
    """
    name = re.sub(r"[-. ]", "_", folder).lower()
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise UserError(f"{folder!r} cannot be the name of a Python module; {_suggest(name)}")
    if name.startswith("test_"):
        raise UserError(f"{folder!r}: pytest takes test_... for tests; {_suggest(name.removeprefix('test_'))}")
    if taken := installed_module(name):
        raise UserError(f"{folder!r}: Python would import the installed module {taken} instead; {_suggest(name)}")
    return name


def installed_module(name: str) -> str:
    """Return the name if a module outside the current folder has it, else ""."""
    if name in sys.stdlib_module_names:
        return name
    spec = find_spec(name)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    return name if any(place and not Path(place).is_relative_to(Path.cwd()) for place in places) else ""


def _suggest(name: str) -> str:
    """Suggest a usable name, for a message; the ASCII letters of a name in another script would say nothing."""
    word = re.sub(r"^[\d_]+", "", re.sub(r"\W+", "_", name)).strip("_") if name.isascii() else ""
    word = word if word and not keyword.iskeyword(word) and not installed_module(word) else f"my_{word or 'task'}"
    return f"choose another, such as {word}"
