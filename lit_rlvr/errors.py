"""`UserError`, the exception that users see as one line, and helpers that name the user's code."""

from __future__ import annotations

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parents[1]
OURS = (_HERE / "lit_rlvr", _HERE / "datamodules")
PYTHONS = (sysconfig.get_path("stdlib"), sysconfig.get_path("scripts"))
INSTALLED = {"site-packages", "dist-packages"}


class UserError(Exception):
    """Bad input. The message says what, where (file, row, field, config key) and what to do.

    The command line prints it as one line and exits with status 2, without a traceback. Line breaks and terminal
    commands in quoted data are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


def user_error_in(error: BaseException) -> UserError | None:
    """The `UserError` that another exception was raised from, if there is one (parsers wrap what options raise)."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    return cause


def first_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def from_user(error: BaseException) -> tuple[str, BaseException] | None:
    """The line of the user's code that an exception came from, as `my_task.py:12`, and the exception raised there.

    It is the deepest line outside lit-rlvr, the standard library and installed packages, in the exception's traceback
    or else in its cause's. A file below the current directory is named relative to it.
    """
    lines = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append((error.filename, error.lineno or 0))
    for file, line in reversed(lines):
        if _is_users(file):
            return f"{_shown(file)}:{line}", error
    earlier = raised_from(error)
    return from_user(earlier) if earlier is not None else None


def user_line(error: BaseException) -> str:
    """Only the line of `from_user`; "" if there is none."""
    found = from_user(error)
    return found[0] if found else ""


def raised_from(error: BaseException) -> BaseException | None:
    """The cause or context of an exception."""
    return error.__cause__ or error.__context__


def defined_at(function: Callable[..., Any]) -> str:
    """A function or callable object with its place of definition, as `advantage (my_task.py:12)`."""
    function = inspect.unwrap(function)
    called = function if inspect.isroutine(function) else type(function).__call__
    code = getattr(called, "__code__", None)
    return called.__qualname__ + (f" ({_shown(code.co_filename)}:{code.co_firstlineno})" if code else "")


def with_user_line(error: BaseException) -> str:
    """`first_line`, preceded by the line of the user's code that it came from, if there is one."""
    return ": ".join(filter(None, (user_line(error), first_line(error))))


def begins_at(function: object) -> str:
    """The first line of a user's function, as `my_task.py:3`; "" if it is not the user's, or not Python."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    if code is None or not _is_users(code.co_filename):
        return ""
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}"


def check_takes(function: Callable[..., Any], *names: str) -> None:
    """Refuse a user's function that cannot be called with arguments of these names, in order.

    Raises:
        UserError: it cannot; the message names the function, its file and line.
    """
    try:
        inspect.signature(function).bind(*names)
    except ValueError:  # a C function without a signature
        return
    except TypeError as error:
        raise UserError(f"{defined_at(function)} must take ({', '.join(names)}): {error}") from error


def check_within(interval: str, where: str, **options: float | None) -> None:
    """Refuse numbers outside an interval; None is "not given", and NaN is always outside.

    Args:
        interval: in mathematical notation: "[0, 1)" contains 0 but not 1, "(0, inf)" every finite positive number.
        where: the group of the options, such as `model`.

    Raises:
        UserError: a number is outside; the message names the option, its value and the interval.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for name, value in options.items():
        if value is None:
            continue
        above = low <= value if interval[0] == "[" else low < value
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise UserError(f"{where}.{name}: {value} must lie in {interval}")


def kind_of(value: Any) -> str:
    """The kind of a value, for a message: None, "an int", "a list"."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"


def _shown(file: str) -> str:
    return os.path.relpath(file) if Path(file).is_relative_to(Path.cwd()) else file


def _is_users(file: str) -> bool:
    """Whether a code file is neither ours nor installed; code without a file has a name in angle brackets."""
    path = Path(file)
    return not (
        file.startswith("<")
        or INSTALLED & {*path.parts}
        or any(path.is_relative_to(folder) for folder in (*OURS, *PYTHONS))
    )
