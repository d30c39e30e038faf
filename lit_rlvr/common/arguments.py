"""Checks of arguments: their names, types and ranges."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from lit_rlvr.common.did_you_mean import nearest
from lit_rlvr.common.foreign_names import OPTIONS_OF_OTHERS, counted_hint, our_option_for
from lit_rlvr.errors import refuse_all

MAX_SIZE = 1_000_000
"""Largest value of options that set the size of a list or an array."""
TYPE_NAMES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list",
    "tuple": "a list", "dict": "a mapping", "Iterable": "a list", "Sequence": "a list", "Mapping": "a mapping",
    "Callable": "a function",
}  # fmt: skip
"""Python type -> its name in messages."""
NUMBER_TYPES: dict[Any, type] = {int: Integral, float: Real}
"""Type of an option -> the numbers that it takes, those of numpy too."""


class ChecksArguments:
    """The base of classes that a config names: from Python, they refuse wrong arguments as the command line does.

    Attributes:
        config_key: the key of a config that the class's options stand under; `{}` in it is the class's name.
    """

    config_key = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_init(cls, args, kwargs, cls.config_key.format(cls.__name__))
        return super().__new__(cls)


_C = TypeVar("_C", bound=type)


def checks_arguments(config_key: str) -> Callable[[_C], _C]:
    """Make a dataclass check its arguments as `ChecksArguments` does, which the parser does not take as its base."""

    def decorate(cls: _C) -> _C:
        init = cls.__init__  # type: ignore[misc]

        @wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            check_init(cls, args, kwargs, config_key)
            init(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[misc]
        return cls

    return decorate


def option_group(config_key: str) -> Callable[[_C], _C]:
    """Make a frozen dataclass a group of options, which may be a dict in Python: it checks its arguments, and remembers
    which ones were given, so that a class's own defaults can stand in for the others (`with_class_defaults`)."""

    def decorate(cls: _C) -> _C:
        init = checks_arguments(config_key)(cls).__init__  # type: ignore[misc]

        @wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            vars(self)["given"] = (*[*inspect.signature(init).parameters][1 : len(args) + 1], *kwargs)
            init(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[misc]
        cls.given = ()  # type: ignore[attr-defined]
        return cls

    return decorate


def check_init(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any], key: str) -> None:
    """Refuse arguments of a class that it has no option for, or that are of another type than annotated.

    Raises:
        UserError: a line for each such argument, with the nearest name if there is no such option.
    """
    if not (args or kwargs):
        return
    known, parameters = init_parameters(cls)
    positional = []
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            positional.append(p.name)
    given = {**dict(zip(positional, args, strict=False)), **kwargs}  # Python refuses too many without a name
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters) and known.keys() <= {p.name for p in parameters}
    problems = []
    for name, value in given.items():
        if name in known:
            if not fits(value, known[name]):
                problems.append(_misfit(value, known[name], f"{key}.{name}"))
        elif not takes_any:
            problems.append(_no_option(name, cls, known, key))
    refuse_all(problems)


@cache
def init_parameters(cls: type) -> tuple[dict[str, Any], list[inspect.Parameter]]:
    """Return the types of the arguments that a class takes, as the parser sees them, and its own parameters."""
    from jsonargparse._parameter_resolvers import get_signature_parameters  # slow, and workers import this module

    def hint(parameter: Any) -> Any:
        if parameter.annotation is inspect.Parameter.empty:
            return Any
        return parameter.annotation if parameter.default is not None else Union[parameter.annotation, None]  # noqa: UP007

    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]  # type: ignore[misc]
    return {p.name: hint(p) for p in get_signature_parameters(cls)}, parameters


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type; True for types that cannot be told at run time."""
    kind = get_origin(hint)
    inner = get_args(hint)
    if kind in (Union, UnionType):
        for item in inner:
            if fits(value, item):
                return True
        return False
    if kind is Literal:
        return value in inner
    if hint in (None, NoneType):
        return value is None
    if hint in NUMBER_TYPES:
        return isinstance(value, NUMBER_TYPES[hint]) and not isinstance(value, bool)
    if hint is bool:
        return type(value).__name__ in ("bool", "bool_")  # numpy's too
    if hint is str:
        return isinstance(value, str | os.PathLike)
    cls = kind or hint
    if hasattr(cls, "given") and isinstance(value, Mapping):  # a group of options, which checks its fields
        return True
    if cls in (list, tuple, set, frozenset):
        return isinstance(value, Sequence | Set) and not isinstance(value, str) and _all_fit(value, inner)
    if isinstance(cls, type) and issubclass(cls, Mapping):
        return isinstance(value, Mapping) and (
            len(inner) < 2 or _all_fit([item for item in value.values() if not isinstance(item, bool)], inner[1:])
        )
    if callable(value) and isinstance(cls, type) and any("__call__" in vars(base) for base in cls.__mro__):
        return True  # a function in the place of an advantage or a reward
    try:
        return not isinstance(cls, type) or isinstance(value, cls)
    except TypeError:  # a protocol
        return True


def _all_fit(values: Iterable[Any], inner: Sequence[Any]) -> bool:
    if inner:
        for value in values:
            if not fits(value, inner[0]):
                return False
    return True


def check_within(interval: str, where: str, **options: float | None) -> None:
    """Refuse numbers outside an interval; None is "not given", and NaN is always outside.

    Args:
        interval: in mathematical notation: "[0, 1)" contains 0 but not 1, "(0, inf)" every finite positive number.
        where: the group of the options, such as `model`.

    Raises:
        UserError: a number is outside; a message names each option, its value and the interval.
    """
    first, second = interval[1:-1].split(",")
    low = float(first)
    high = float(second)

    def within(value: float) -> bool:
        above = low <= value if interval[0] == "[" else low < value
        below = value <= high if interval[-1] == "]" else value < high
        return above and below

    violations = {}
    for name, value in options.items():
        if value is not None and not within(value):
            violations[name] = value
    refuse_all(f"{where}.{name}: {value} must lie in {interval}" for name, value in violations.items())


def _no_option(name: str, cls: type, known: Iterable[str], key: str) -> str:
    """Return a message with the nearest option of the class, or else of a config."""
    groups = set()
    for path in OPTIONS_OF_OTHERS.values():
        groups.add(path.partition(".")[0])
    near = our_option_for(name, known) or our_option_for(name, groups) or nearest(name, known)
    hint = counted_hint(f"{key}.{name}") or (f"; did you mean {near.replace('.init_args', '')!r}?" if near else "")
    return f"{key}: {cls.__name__} has no option {name!r}{hint}"


def _misfit(value: Any, hint: Any, where: str) -> str:
    """Return a message with the types that an option accepts, and the given value, or the wrong one within it."""
    if value is None:
        return f"{where}: None is not allowed; leave it out for its default"
    if get_origin(hint) in (Union, UnionType):
        kinds = get_args(hint)
    else:
        kinds = (hint,)
    if isinstance(value, list | tuple):
        for inner in (get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple) and get_args(kind)):
            place, item = next((place, item) for place, item in enumerate(value) if not fits(item, inner))
            return _misfit(item, inner, f"{where}.{place}")
    names = dict.fromkeys(name for kind in kinds for name in _names_of(kind))
    return f"{where}: give {', or '.join(names)}, not {given_text(value)}"


def _names_of(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Literal:
        values = ", ".join(map(repr, get_args(hint)))
        yield f"one of {values}" if len(get_args(hint)) > 1 else values
    elif hint not in (None, NoneType):
        name = getattr(get_origin(hint) or hint, "__name__", str(hint))
        yield TYPE_NAMES.get(name, f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}")


def given_text(value: Any) -> str:
    """Return a plain value as Python writes it, shortened, and the type of any other."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if not isinstance(value, str | int | float | list | tuple | Mapping):
        return type_text(value)
    text = repr(value)
    if len(text) <= 80:
        return text
    return f"{text[:77]}..."


def type_text(value: Any) -> str:
    """Return the type of a value for a message: None, "an int", "a list"."""
    name = type(value).__name__
    if value is None:
        return "None"
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"
