"""`lit-rlvr init FOLDER`: write a small project of your own, which `lit-rlvr fit` and `pytest` run as it is."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from lit_rlvr.common.files import check_writable, write_atomically
from lit_rlvr.common.packages import installer
from lit_rlvr.common.terminal import show_result
from lit_rlvr.configs import Parser
from lit_rlvr.errors import UserError

PROJECTS = Path(__file__).parent / "projects"
_PREVIEW = "preview --config config.yaml  # prompts as the model sees them"


KINDS = {
    "task": {
        "contents": "a data set, `Backwards`, and a reward, `InPlace`",
        "tests": "the reward on right and wrong answers, and the rows",
        "look": _PREVIEW,
        "outcome": "a minute or two on two cores; accuracy from 0.03 to about 0.75",
    },
    "algorithm": {
        "contents": "an algorithm, `UpperClip`",
        "tests": "the properties of the loss, and its value by hand",
        "look": "check my_task.UpperClip  # the same properties, in numbers",
        "outcome": "a minute or two on two cores; accuracy from 0.2 to about 0.3",
    },
    "environment": {
        "contents": "an environment, `Drawer`, and questions for it, `Drawers`",
        "tests": "the environment's answers and rewards, and the rows",
        "look": _PREVIEW,
        "outcome": "about two minutes on two cores; accuracy from 0.05 to about 0.6",
    },
}
"""Kind of project -> what its README says: the parts in the module, the subject of the tests, a command that shows the
parts before training, and the run's duration and accuracy. The other files are in the folder of that name."""
TASK_MODULE = "my_task"
"""The module's name in `projects/`."""


def run_command(command: str, arguments: list[str]) -> None:
    """Run the command line of `init`."""
    parser = Parser(prog=f"lit-rlvr {command}", description=__doc__)
    parser.add_argument("folder", type=str, help="folder to write; it is new or empty, and its name is the module's")
    parser.add_argument("--kind", type=str, default="task", help=f"what the project is about: {', '.join(KINDS)}")
    config = parser.parse_args(arguments)
    files = []
    for path in init(Path(config.folder), config.kind):
        files.append(str(path))
    line = f"cd {shlex.quote(config.folder)}; {installer()} pytest; pytest; lit-rlvr fit --config config.yaml"
    show_result({"files": files, "next": line}, lambda: print(*files, line, sep="\n"))


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
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another folder, or remove its files first")
    name = module_name(folder.absolute().name)
    check_writable(folder, "init")
    texts = {}
    for path in (PROJECTS / kind).iterdir():
        if path.is_file():
            texts[path.name] = path.read_text()
    texts["README.md"] = (PROJECTS / "README.md").read_text().format(**KINDS[kind])
    written = {}
    for file, text in sorted(texts.items()):
        written[folder / file.replace(TASK_MODULE, name)] = text
    for path, text in written.items():
        write_atomically(path, text.replace(TASK_MODULE, name))
    return [*written]


def module_name(folder: str) -> str:
    """Return the module name for a folder's name: `my_task` for `my-task`.

    Raises:
        UserError: it is no valid name, or that of an installed module, which Python would import instead.
    """
    name = re.sub(r"[-. ]", "_", folder).lower()
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise UserError(f"{folder!r} cannot be the name of a Python module; choose another, such as my_task")
    if name in sys.stdlib_module_names or name in packages_distributions():
        raise UserError(
            f"{folder!r}: Python would import the installed module {name} instead; choose another, such as my_task"
        )
    return name
