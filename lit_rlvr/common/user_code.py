"""The user's code: its line in an exception, its functions in messages, and checks of both."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lit_rlvr.common.paths import shown
from lit_rlvr.errors import UserError, cause_of, chain_of, first_line

_HERE = Path(__file__).parents[2]
OWN_FOLDERS = (_HERE / "lit_rlvr", _HERE / "datamodules")
PYTHON_FOLDERS = (sysconfig.get_path("stdlib"), sysconfig.get_path("scripts"))
PACKAGE_FOLDERS = {"site-packages", "dist-packages"}


@cache
def is_user_code(file: str) -> bool:
    """Return True for a code file that is neither ours nor installed; code without a file has a name in <>."""
    path = Path(file)
    return not (
        file.startswith("<")
        or PACKAGE_FOLDERS & {*path.parts}
        or any(path.is_relative_to(folder) for folder in (*OWN_FOLDERS, *PYTHON_FOLDERS))
    )


def comes_from_library(error: BaseException) -> bool:
    """Return whether an installed package raised an exception: neither our code nor the user's."""
    *_, last = traceback.extract_tb(error.__traceback__)
    is_own = any(Path(last.filename).is_relative_to(folder) for folder in OWN_FOLDERS)
    return not is_own and find_user_line(error) is None


def find_user_line(error: BaseException) -> tuple[str, BaseException] | None:
    """Return the user's line that an exception came from, as `my_task.py:12`, and the exception raised there.

    It is the deepest line outside lit-rlvr, the standard library and installed packages, in the exception's traceback
    or else in its cause's.
    """
    for raised in chain_of(error, cause_of):
        lines = []
        for frame in traceback.extract_tb(raised.__traceback__):
            lines.append((frame.filename, frame.lineno or 0))
        if isinstance(raised, SyntaxError) and raised.filename:
            lines.append((raised.filename, raised.lineno or 0))
        for file, line in reversed(lines):
            if is_user_code(file):
                return f"{shown(file)}:{line}", raised
    return None


def user_line(error: BaseException) -> str:
    """Return the line of `find_user_line`; "" if there is none."""
    line_error = find_user_line(error)
    if line_error:
        return line_error[0]
    return ""


def with_user_line(error: BaseException) -> str:
    """Return `first_line`, after the line of the user's code that it came from, if there is one."""
    return ": ".join(filter(None, (user_line(error), first_line(error))))


def defined_at(function: Callable[..., Any]) -> str:
    """Return the name of a function or callable object with its place of definition, as `advantage (my_task.py:12)`."""
    function = inspect.unwrap(function)
    called = function if inspect.isroutine(function) else type(function).__call__
    code = getattr(called, "__code__", None)
    return called.__qualname__ + (f" ({shown(code.co_filename)}:{code.co_firstlineno})" if code else "")


def first_line_of(function: object) -> str:
    """Return the first line of a user's function, as `my_task.py:3`; "" if it is not the user's, or not Python."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    if code is None or not is_user_code(code.co_filename):
        return ""
    return f"{shown(code.co_filename)}:{code.co_firstlineno}"


def check_takes(function: Callable[..., Any], *names: str, **others: Any) -> None:
    """Refuse a user's function that does not take these arguments, in order, with others by name.

    Raises:
        UserError: it does not take them; the message names the function, its file and line.
    """
    try:
        inspect.signature(function).bind(*names, **others)
    except ValueError:  # a C function without a signature
        return
    except TypeError as error:
        raise UserError(f"{defined_at(function)} must take ({', '.join(names)}): {error}") from error


def check_calls_super(part: object, where: str) -> None:
    """Refuse an object of a user's class whose `__init__` does not call that of our class, which sets `init_args`.

    Raises:
        UserError: names the `__init__`, its file and line.
    """
    if not hasattr(part, "init_args"):
        raise UserError(f"{where}: {defined_at(type(part).__init__)} must call super().__init__(**kwargs)")
