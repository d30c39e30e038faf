"""Imports of a user's own modules from configs; `datamodules.X` is a class of the user's folder, or else ours."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import lit_rlvr

NAME = "datamodules"
"""Name of the folder that many Lightning projects have, and prefix of our data sets in configs."""
OURS = f"lit_rlvr.{NAME}"
_ROOT = Path(lit_rlvr.__file__).parents[1]

_log = logging.getLogger("lit_rlvr")


def add_user_modules() -> None:
    """Let this process import a user's own modules from the current directory.

    Installed packages come first, so that a file of the user's cannot shadow them. A source checkout of lit-rlvr that
    is on the path for an editable install comes after the user's folder: both may have a folder `datamodules`.
    """
    here = str(Path.cwd())
    places = [i for i, path in enumerate(sys.path) if Path(path) == _ROOT != Path(here)]
    sys.path.insert(places[0] if places else len(sys.path), here)
    if not any(isinstance(finder, _DataModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DataModules())


class _DataModules(MetaPathFinder, Loader):
    """Imports `datamodules` and its modules from the user's folder, or else from ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != NAME:
            return None
        theirs = _theirs(fullname, path)
        if theirs is None and find_spec(f"lit_rlvr.{fullname}") is None:
            return None
        return ModuleSpec(fullname, self, loader_state=theirs, is_package=fullname == NAME)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        theirs: ModuleSpec | None = spec.loader_state
        if theirs is None:
            sys.modules[spec.name] = import_module(f"lit_rlvr.{spec.name}")
            return
        found = sys.modules[spec.name] = module_from_spec(theirs)
        if theirs.loader is not None:
            theirs.loader.exec_module(found)
        if spec.name == NAME and not hasattr(found, "__getattr__"):
            found.__getattr__ = _ours  # type: ignore[method-assign]


def _theirs(fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Find the user's module of this name; return None if there is none, or if the found one is in our own folder."""
    if fullname == NAME:
        path = [place for place in sys.path if not _is_ours(Path(place or os.getcwd(), NAME))]
    elif path is None or any(_is_ours(Path(place)) for place in path):
        return None
    return PathFinder.find_spec(fullname, list(path))


def _is_ours(folder: Path) -> bool:
    ours = Path(lit_rlvr.__file__).with_name(NAME)
    return folder.is_dir() and folder.samefile(ours)


def _ours(name: str) -> Any:
    """Return our data set if the user's package has none of that name."""
    if not name.startswith("__"):
        found = getattr(import_module(OURS), name, None)
        if found is not None:
            return found
    raise AttributeError(f"neither {sys.modules[NAME].__path__[0]} nor lit-rlvr has a data set {name!r}")


def report_namesake(cls: type) -> None:
    """Log which class a config means if the user and lit-rlvr both have one of that name."""
    if cls.__module__.partition(".")[0] == NAME and cls.__name__ in import_module(OURS).__all__:
        where = getattr(sys.modules[cls.__module__], "__file__", None)
        _log.warning("data: %s is yours (%s); lit-rlvr's own is %s.%s", cls.__name__, where, OURS, cls.__name__)
