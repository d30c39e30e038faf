"""How the command that runs is continued after a failure, for messages of parts that several commands use."""

from collections.abc import Iterator
from contextlib import contextmanager

AGAIN = "run the same command again to continue"
RESUMING = {"fit": "resume with --ckpt_path last", "evaluate": AGAIN, "filter": AGAIN}
"""Command -> how it is continued; the others begin anew."""


class _Running:
    """The command of this process; from Python, runs are those of `fit`."""

    command = "fit"


@contextmanager
def running(command: str) -> Iterator[None]:
    """Note which command runs in this process until the end of the block."""
    before = _Running.command
    _Running.command = command
    try:
        yield
    finally:
        _Running.command = before


def how_to_resume() -> str:
    """Return what a user does to continue what failed, as the end of a message."""
    return RESUMING.get(_Running.command, "run the command again")
