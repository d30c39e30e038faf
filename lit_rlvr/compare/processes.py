""""""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_rlvr.compare.cells import Step, next_step
from lit_rlvr.compare.cluster import Cluster, ClusterJob
from lit_rlvr.compare.study import Cell, Study
from lit_rlvr.evaluation.processes import start_command, stop_commands, threads
from lit_rlvr.terminal import printable


class Announcer:
    """One line on stderr when a cell starts, and one when it ends.

    Args:
        total: number of cells in the study.
        done: number of cells already done.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self._ended = total, done, 0
        self._began = time.monotonic()
        self._places: dict[Cell, tuple[int, float]] = {}  # its number and start time
        if done:
            self._say(f"{done} of {total} cells are done already")

    def started(self, cell: Cell) -> None:
        place = self.done + len(self._places) + 1
        self._places[cell] = (place, time.monotonic())
        self._say(f"cell {place} of {self.total}: {cell}")

    def ended(self, cell: Cell, error: str | None) -> None:
        self._ended += 1
        place, started = self._places[cell]
        now = time.monotonic()
        left = (now - self._began) / self._ended * (self.total - self.done - self._ended)
        outcome = f"failed: {error}" if error else "done"
        self._say(f"cell {place} of {self.total}: {outcome} ({now - started:.0f} s); {_minutes(left)} left")

    @staticmethod
    def _say(text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


LOG = "log.txt"
"""A cell's output, in its run folder."""

BEGIN = "$ lit-rlvr "
ERROR = re.compile(r"lit-rlvr: error: |\w[\w.]*(Error|Exception|Interrupt)\b")
"""A line that reports an error: ours, or the last line of a traceback."""

Process = subprocess.Popen[bytes] | ClusterJob
Started = Callable[[Cell], None]
Ended = Callable[[Cell, str | None], None]


def run_cells(
    study: Study, cells: Sequence[Cell], root: Path, jobs: int, lock: int, started: Started, ended: Ended,
    cluster: Cluster | None = None,
) -> None:  # fmt: skip
    """Run cells, `jobs` at a time, each to its last step.

    When this process is interrupted or killed, the running cells save and exit with it.

    Args:
        root: the study's folder.
        lock: descriptor that the processes keep open.
        started: called with each cell.
        ended: called with each cell, and, in one line, why it failed.
        cluster: where to run them; None = as processes of this machine.
    """
    waiting, running = deque(cells), dict[Cell, tuple[Step, Process]]()

    def start(cell: Cell, step: Step) -> Process:
        log = root / cell.folder / LOG
        with log.open("a") as file:
            file.write(f"{BEGIN}{step}\n")
        return _start(step, log, jobs, lock) if cluster is None else cluster.start(study, cell, log)

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.popleft()
                started(cell)
                step = next_step(study, cell, root)
                assert step is not None, "a cell that is done does not wait"
                running[cell] = step, start(cell, step)
            time.sleep(0.1)
            for cell in [cell for cell, (_, process) in running.items() if process.poll() is not None]:
                step, process = running.pop(cell)
                if status := process.wait():
                    ended(cell, reason(root / cell.folder / LOG, status))
                    continue
                step.succeeded()
                following = next_step(study, cell, root)
                if following is None:
                    ended(cell, None)
                elif following == step:
                    ended(cell, f"`lit-rlvr {step}` ended without its result")
                else:
                    running[cell] = following, start(cell, following)
    finally:
        stop_commands([process for _, process in running.values()])


def _start(step: Step, log: Path, jobs: int, lock: int) -> subprocess.Popen[bytes]:
    """Start a step as a process."""
    with log.open("a") as file:
        return start_command(step.arguments, file, os.environ | threads(jobs), pass_fds=[lock])


def reason(log: Path, status: int) -> str:
    """Why a run failed, in one line: its last reported error, else the signal that killed it, else its last line."""
    told = log.read_text(errors="replace").rpartition(BEGIN)[2].splitlines()[1:]
    errors = [line for line in told if ERROR.match(line)]
    if errors:
        return errors[-1].removeprefix("lit-rlvr: error: ")
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return next((line for line in reversed(told) if line.strip()), f"exit status {status}")
