"""Imports of a user's own modules from configs; `datamodules.X` is a class of the user's folder, or else ours."""

from __future__ import annotations

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
from lit_rlvr.common.log import log

PACKAGE = "datamodules"
"""Name of the folder that many Lightning projects have, and prefix of our data sets in configs."""
OUR_PACKAGE = f"lit_rlvr.{PACKAGE}"
_ROOT = Path(lit_rlvr.__file__).parents[1]


def add_user_modules() -> None:
    """Let this process import a user's own modules from the current directory.

    Installed packages come first, so that a file of the user's cannot shadow them. A source checkout of lit-rlvr that
    is on the path for an editable install comes after the user's folder: both may have a folder `datamodules`.
    """
    folder = str(Path.cwd())
    indices = []
    for i, path in enumerate(sys.path):
        if Path(path) == _ROOT != Path(folder):
            indices.append(i)
    sys.path.insert(indices[0] if indices else len(sys.path), folder)
    if not any(isinstance(finder, _DataModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DataModules())


class _DataModules(MetaPathFinder, Loader):
    """An importer of `datamodules` and its modules from the user's folder, or else from ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        users_spec = _find_users_module(fullname, path)
        if users_spec is None and find_spec(f"lit_rlvr.{fullname}") is None:
            return None
        return ModuleSpec(fullname, self, loader_state=users_spec, is_package=fullname == PACKAGE)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        users_spec: ModuleSpec | None = spec.loader_state
        if users_spec is None:
            sys.modules[spec.name] = import_module(f"lit_rlvr.{spec.name}")
            return
        users_module = sys.modules[spec.name] = module_from_spec(users_spec)
        if users_spec.loader is not None:
            users_spec.loader.exec_module(users_module)
        if spec.name == PACKAGE and not hasattr(users_module, "__getattr__"):
            users_module.__getattr__ = _our_data_set  # type: ignore[method-assign]


def _find_users_module(fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Find the user's module of this name; return None if there is none, or if the found one is in our own folder."""
    if fullname == PACKAGE:
        path = []
        for place in sys.path:
            if not _is_ours(Path(place or os.getcwd(), PACKAGE)):
                path.append(place)
    elif path is None or any(_is_ours(Path(place)) for place in path):
        return None
    return PathFinder.find_spec(fullname, list(path))


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and folder.samefile(Path(lit_rlvr.__file__).with_name(PACKAGE))


def _our_data_set(name: str) -> Any:
    """Return our data set if the user's package has none of that name."""
    if not name.startswith("__") and (data_set := getattr(import_module(OUR_PACKAGE), name, None)) is not None:
        return data_set
    raise AttributeError(f"neither {sys.modules[PACKAGE].__path__[0]} nor lit-rlvr has a data set {name!r}")


def report_namesake(cls: type) -> None:
    """Log which class a config means if the user and lit-rlvr both have one of that name."""
    if cls.__module__.partition(".")[0] == PACKAGE and cls.__name__ in import_module(OUR_PACKAGE).__all__:
        where = getattr(sys.modules[cls.__module__], "__file__", None)
        log.warning("data: %s is yours (%s); lit-rlvr's own is %s.%s", cls.__name__, where, OUR_PACKAGE, cls.__name__)
