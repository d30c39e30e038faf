"""What launchers set in the environment of a run's processes."""

from __future__ import annotations

import os

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Variables in which launchers set a process's rank; the first that is set counts, as in Lightning."""


def launched_rank() -> str | None:
    """Return the rank that a launcher has given this process; None without a launcher."""
    for key in _RANKS:
        if key in os.environ:
            return os.environ[key]
    return None


def is_first_process() -> bool:
    """Return whether this is the run's first process.

    It reads the environment, so it works before the process group exists.
    """
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return node == "0" and launched_rank() in (None, "0")
