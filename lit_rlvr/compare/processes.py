"""Runs cells, each as `lit-rlvr fit` in a separate process."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from lit_rlvr.compare.folder import CONFIG
from lit_rlvr.compare.study import Cell
from lit_rlvr.distributed.checkpoint_files import list_checkpoints

PR_SET_PDEATHSIG = 1
LOG = "log.txt"
"""A cell's output, in its run folder."""

BEGIN = "$ lit-rlvr "
ERROR = re.compile(r"lit-rlvr: error: |\w[\w.]*(Error|Exception|Interrupt)\b")
"""A line that reports an error: ours, or the last line of a traceback."""

Started = Callable[[Cell], None]
Ended = Callable[[Cell, str | None], None]


def run_cells(cells: Sequence[Cell], root: Path, jobs: int, lock: int, started: Started, ended: Ended) -> None:
    """Run cells, `jobs` at a time.

    When this process is interrupted or killed, the running cells save and exit with it.

    Args:
        root: the study's folder.
        lock: descriptor that the processes keep open.
        started: called with each cell.
        ended: called with each cell, and, in one line, why it failed.
    """
    waiting, running = deque(cells), dict[Cell, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                started(cell)
                running[cell] = _start(root / cell.folder, jobs, lock)
            time.sleep(0.1)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                status = running.pop(cell).returncode
                ended(cell, None if status == 0 else reason(root / cell.folder / LOG, status))
    finally:
        _stop(running.values())


def _start(run: Path, jobs: int, lock: int) -> subprocess.Popen[bytes]:
    """Start `fit` in a run folder, resuming from the last checkpoint if there is one."""
    again = ["--ckpt_path", "last"] if list_checkpoints(run) else ["--overwrite", "true"]
    arguments = ["fit", "--config", str(run / CONFIG), "--trainer.default_root_dir", str(run), *again]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # our modules, not those in the current folder
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with (run / LOG).open("a") as log:
        log.write(f"{BEGIN}{shlex.join(arguments)}\n")
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "lit_rlvr", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment, pass_fds=[lock], start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """Make a cell save and exit, as on Ctrl-C, if the comparison is killed."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """Let running cells save and exit; a second Ctrl-C does not wait for them."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        raise


def reason(log: Path, status: int) -> str:
    """Why a run failed, in one line: its last reported error, else the signal that killed it, else its last line."""
    told = log.read_text(errors="replace").rpartition(BEGIN)[2].splitlines()[1:]
    errors = [line for line in told if ERROR.match(line)]
    if errors:
        return errors[-1].removeprefix("lit-rlvr: error: ")
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return next((line for line in reversed(told) if line.strip()), f"exit status {status}")
