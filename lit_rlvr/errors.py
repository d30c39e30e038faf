"""The one exception that reaches a user as one line."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message says what, where (file, row, field, config key) and what to do.

    The command line prints it as one line and exits with status 2, without a traceback. Data that is quoted in it may
    hold line breaks and terminal commands: they are shown, not obeyed.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


def user_error_in(error: BaseException) -> UserError | None:
    """The `UserError` that another exception was raised from, if there is one (parsers wrap what options raise)."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    return cause


def in_one_line(error: BaseException) -> str:
    """An exception's type and the first line that it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
