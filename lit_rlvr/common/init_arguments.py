"""The settings of objects that were built in Python, as a config would name them."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from types import FrameType
from typing import Any


def init_arguments() -> dict[str, Any]:
    """Return the arguments of the object that is being built, those of its base classes included.

    Call it in `__init__`; each `__init__` through which the caller was reached contributes its arguments, so arguments
    that a subclass fixes are among them. It reads them from the frames, as Lightning's `save_hyperparameters` does:
    a decorator or `__new__` sees neither what a subclass fixes nor which `__init__` fails to call its base's.
    """
    frame: FrameType | None = inspect.currentframe()
    frame = None if frame is None else frame.f_back
    built = None if frame is None else frame.f_locals["self"]
    arguments: dict[str, Any] = {}
    while frame is not None and frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is built:
        names, _, _, values = inspect.getargvalues(frame)
        arguments |= {name: values[name] for name in names if name != "self"}
        frame = frame.f_back
    return arguments


def class_default(cls: type, name: str) -> Any:
    """Return the default of an argument of a class: that of the most derived `__init__` that names it."""
    inits = (vars(owner).get("__init__") for owner in inspect.getmro(cls))
    named = (inspect.signature(init).parameters.get(name) for init in inits if inspect.isfunction(init))
    return next(parameter.default for parameter in named if parameter is not None)


def with_class_defaults(cls: type, **groups: Any) -> dict[str, Any]:
    """Return groups of options, where a class's own defaults stand in for fields that were not given.

    `DAPO(loss=Loss(entropy_coef=0.1))` keeps DAPO's aggregation.

    Args:
        cls: the class.
        groups: argument of the class -> the group, or a mapping of its fields.
    """
    completed = {}
    for name, group in groups.items():
        if isinstance(group, Mapping):
            options = group
        else:
            options = {}
            for field in group.given:
                options[field] = getattr(group, field)
        completed[name] = replace(class_default(cls, name), **options)
    return completed


def snake_case(class_name: str) -> str:
    """Convert MathAnswer to math_answer, TextToSQL to text_to_sql, GSM8K to gsm8k: the default name of an object."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", class_name).lower()


def settings_of(value: Any) -> Any:
    """Return an object as a config writes it: plain values, dotted paths, `class_path` with `init_args`.

    The arguments of an object are its `init_args` (see `init_arguments`), its fields if it is a dataclass, else the
    attributes that are named like the parameters of its constructor.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): settings_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [settings_of(item) for item in value]
    if isinstance(value, partial):
        return {"class_path": dotted_path_of(value.func), "init_args": settings_of(value.keywords)}
    if isinstance(value, type):
        return {"class_path": dotted_path_of(value)}
    if callable(value) and hasattr(value, "__qualname__"):
        return dotted_path_of(value)
    arguments = settings_of(arguments_of(value))
    plain = is_dataclass(value) and type(value).__base__ is object  # the parser takes its fields without a class_path
    if plain:
        return arguments
    return {"class_path": dotted_path_of(type(value)), "init_args": arguments}


def arguments_of(built: Any) -> dict[str, Any]:
    """Return the arguments that an object was built with, as far as it keeps them."""
    if hasattr(built, "init_args"):
        from jsonargparse._parameter_resolvers import get_signature_parameters  # slow, and workers import this module

        accepted = {parameter.name for parameter in get_signature_parameters(type(built))}  # as the parser sees it
        return {name: value for name, value in built.init_args.items() if name in accepted}
    if is_dataclass(built):
        return {field.name: getattr(built, field.name) for field in fields(built) if field.init}
    names = [*inspect.signature(type(built).__init__).parameters][1:]
    return {name: getattr(built, name) for name in names if hasattr(built, name)}


def dotted_path_of(named: Any) -> str:
    """Return the path by which a config names a class or function."""
    return f"{named.__module__}.{named.__qualname__}"
