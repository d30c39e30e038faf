"""`UserError`, which users see as one line, other ends of a run, and what exceptions say."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator

MAX_LINE = 2000
"""Longest line of an error, in characters."""


class UserError(Exception):
    """Bad input. The message says what is wrong, where (file, row, field, config key) and what to do.

    The command line prints each message as one line and exits with status 2, without a traceback. The constructor
    escapes line breaks and terminal commands in quoted data.

    Args:
        messages: one message or several, each for a line of its own.
    """

    def __init__(self, *messages: str) -> None:
        self.messages = tuple(dict.fromkeys(map(_escaped, messages)))
        super().__init__("\n".join(self.messages))


def check_all(*checks: Callable[[], object]) -> None:
    """Run all checks, then raise one `UserError` with the messages of those that failed.

    Raises:
        UserError: a check failed.
    """
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += error.messages
    refuse_all(problems)


def refuse_all(problems: Iterable[str]) -> None:
    """Raise one `UserError` with every problem, if there is any.

    Raises:
        UserError: there is a problem.
    """
    messages = [*problems]
    if messages:
        raise UserError(*messages)


START_AGAIN = os.EX_TEMPFAIL
"""Exit status (75) of a run that a new process can resume, with nothing to mend before."""


class ResumableError(UserError):
    """A failure that only a new process can get over: the run resumes with `--ckpt_path last`."""


class RunStopped(Exception):
    """The clean end of a run that received a signal.

    Args:
        signal_number: the signal.
        saved: True if there is a checkpoint to resume from.
    """

    def __init__(self, signal_number: int, saved: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.saved = saved


def user_error_in(error: BaseException) -> UserError | None:
    """Return the `UserError` among an exception and its causes; None if there is none (parsers wrap exceptions)."""
    return next((cause for cause in chain_of(error, lambda e: e.__cause__) if isinstance(cause, UserError)), None)


def was_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an exception, or one of its causes and contexts, is of this kind."""
    for cause in chain_of(error, cause_of):
        if isinstance(cause, kind):
            return True
    return False


def chain_of(error: BaseException, earlier: Callable[[BaseException], BaseException | None]) -> Iterator[BaseException]:
    """Yield an exception and its causes, each once: threads that raise one exception can close a circle."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = earlier(following)


def cause_of(error: BaseException) -> BaseException | None:
    """Return the cause or context of an exception."""
    return error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message, with the next one if the first ends in a colon."""
    lines = []
    for line in str(error).splitlines():
        if line.strip():
            lines.append(line.strip())
    if lines and lines[0].endswith(":"):
        lines[0] = " ".join(lines[:2])
    if lines:
        return f"{type(error).__name__}: {lines[0]}"
    return type(error).__name__


def shorten_line(line: str) -> str:
    """Return a line of at most `MAX_LINE` characters, which keeps its beginning and its end."""
    left_out = len(line) - MAX_LINE
    if left_out <= 0:
        return line
    return f"{line[:1500]} [{left_out + 100} characters left out] {line[-400:]}"


def _escaped(message: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shorten_line(message))
