"""Refuses null and scalar values where an option does not allow them; the parser accepts both, and they would fail
later."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from importlib import import_module
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from lit_rlvr.errors import UserError


def refuse_nulls(config: Namespace, classes: Mapping[str, type]) -> None:
    """Check every option that one of our classes or a user's class declares.

    Args:
        config: the parsed config.
        classes: key -> the class whose arguments are under it.

    Raises:
        UserError: a value is not allowed; the message names the option.
    """
    for key, cls in classes.items():
        _check_arguments(config[key], cls, key)
    _check_arguments(config.trainer, object, "trainer")
    for key in ("model", "data"):
        _check(config[key], Any, key)


def _check(value: Any, hint: Any, key: str) -> None:
    if value is None:
        if hint is not Any and hint is not NoneType and NoneType not in get_args(hint):
            raise UserError(f"{key}: null is not allowed; leave it out for its default")
    elif isinstance(value, Namespace) and "class_path" in value:
        module, _, name = str(value.class_path).rpartition(".")
        _check_arguments(
            value.get("init_args") or Namespace(), getattr(import_module(module), name), f"{key}.init_args"
        )
    elif type(value) in get_args(hint):  # a type without options among several
        return
    elif known := [cls for cls in (hint, *get_args(hint)) if dataclasses.is_dataclass(cls)]:
        _check_arguments(value, known[0], key)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check(item, Any, f"{key}.{place}")


def _check_arguments(values: Any, cls: Any, key: str) -> None:
    hints: dict[str, Any] = {}
    for owner in reversed(inspect.getmro(cls) if inspect.isclass(cls) else ()):
        hints |= {} if owner is object else _hints(vars(owner).get("__init__"))
    if not isinstance(values, Namespace):
        raise UserError(f"{key}: {values!r} is not a group of options; give them by their names")
    for name, value in vars(values).items():
        _check(value, hints.get(name, Any), f"{key}.{name}")


def _hints(function: Any) -> dict[str, Any]:
    """The types of a function's parameters, except those that default to None or cannot be resolved."""
    try:
        found = get_type_hints(function)
        unset = [p.name for p in inspect.signature(function).parameters.values() if p.default is None]
    except (NameError, TypeError, ValueError):  # names only for type checkers, C functions
        return {}
    return {name: hint for name, hint in found.items() if name not in unset}
