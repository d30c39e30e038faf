"""How a run is continued, replaced or put elsewhere, for messages: in the words of its command, or of Python."""

from collections.abc import Iterator
from contextlib import contextmanager

AGAIN = "run the same command again to continue"
RESUMING = {
    "python": 'resume with ckpt_path="last"',
    "fit": "resume with --ckpt_path last",
    "evaluate": AGAIN,
    "filter": AGAIN,
}
"""Command -> how it is continued; the others begin anew."""


class _Running:
    """The command of this process; without one, runs are started from Python."""

    command = "python"


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


def how_to_replace() -> str:
    """Return the option that replaces an earlier run."""
    if _Running.command == "python":
        return "overwrite=True"
    return "--overwrite true"


def run_folder_option() -> str:
    """Return the option that names the run folder."""
    if _Running.command == "python":
        return "default_root_dir"
    return "trainer.default_root_dir"
