"""Turns an exception that ends a command into one line, unless it is a bug in lit-rlvr."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

from jsonargparse import ArgumentError

from lit_rlvr.cli.parse_errors import explain_parse_error
from lit_rlvr.errors import OURS, first_line, from_user, raised_from, user_error_in

TRACEBACK = "LIT_RLVR_TRACEBACK"
"""Environment variable that shows the whole traceback above the line."""

_CANNOT_BE_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG)
_BEFORE_A_RUN = {"main.py", "lightning_cli.py", "trainer.py", "begin.py", "configs.py"}
"""Our files that call Lightning directly; other files call it during a run."""


def failure_line(error: Exception) -> str | None:
    """One line about a problem with the input, the user's code, a library's option or the disk; None for a bug in
    lit-rlvr, which keeps its traceback."""
    cause = user_error_in(error)  # the parser wraps what an option's class raises
    if cause is not None and not isinstance(error, ArgumentError):
        return str(cause)
    if found := from_user(error):
        return f"{found[0]}: {first_line(found[1])} ({TRACEBACK}=1 shows the whole traceback)"
    if isinstance(error, ArgumentError):
        return ": ".join([*getattr(error, "__notes__", ()), explain_parse_error(error)])
    if isinstance(error, OSError) and error.errno in _CANNOT_BE_WRITTEN:
        return f"{error.filename or 'a file of the run'} cannot be written: {error.strerror}"
    return _refused_by_library(error)


def _refused_by_library(error: BaseException) -> str | None:
    """The message with which Lightning, the parser or a class that they built refuses an option, such as a logger whose
    package is missing or an interval that is too long; only if none of our code but the caller was involved."""
    origin = _unwrapped(error)
    files = _files(error) + _files(origin)
    ours = {file.name for file in files if any(file.is_relative_to(folder) for folder in OURS)}
    if type(origin).__name__ != "MisconfigurationException" and (files[-1].name in ours or ours - _BEFORE_A_RUN):
        return None
    return f"trainer: {' '.join(str(origin).split()) or type(origin).__name__}"


def _unwrapped(error: BaseException) -> BaseException:
    """The exception that the parser wrapped: the parser's own message repeats every given value."""
    earlier = raised_from(error)
    return error if earlier is None or "jsonargparse" not in _files(error)[-1].parts else _unwrapped(earlier)


def _files(error: BaseException) -> list[Path]:
    """The frames that an exception passed through; the last one raised it."""
    return [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
