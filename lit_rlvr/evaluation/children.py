"""`lit-rlvr` commands started as processes of their own, which end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import IO, Protocol

from lit_rlvr.rewards.worker import PR_SET_PDEATHSIG

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def start_command(
    arguments: Sequence[str], log: IO[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start `lit-rlvr` with these arguments.

    If this process is killed, the command saves and exits, as on Ctrl-C. It runs our modules, whatever those in the
    current folder are called.

    Args:
        log: receives its output.
        pass_fds: descriptors that it keeps open.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "lit_rlvr", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        env={**environment, "PYTHONSAFEPATH": "1"}, pass_fds=pass_fds, start_new_session=True,
        preexec_fn=_end_with_parent,
    )  # fmt: skip


def threads(commands: int) -> dict[str, str]:
    """The environment variable that shares the processor among so many commands; nothing if the user has set it."""
    if commands == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // commands))}


def _end_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Stoppable(Protocol):
    """A process, or a job of a cluster."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


def stop_commands(processes: Collection[Stoppable]) -> None:
    """Let running commands save and exit; a second Ctrl-C does not wait for them."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        raise
