"""Runs the cells of a study as processes of this machine or as jobs of a cluster, and prints their progress."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_rlvr.commands.compare.study import Cell, Study
from lit_rlvr.commands.compare.study_folder import CellCommand, StudyFolder, next_command
from lit_rlvr.commands.watch.follow import format_duration
from lit_rlvr.common.packages import require
from lit_rlvr.common.terminal import printable
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.processes import start_command, stop_commands, thread_environment


class ClusterCommand:
    """The next command of a cell, as a job runs it on one machine; the cluster queues a preempted job again.

    Args:
        study: the study.
        cell: the cell to run.
        root: the study's folder.
        log: receives the command's output.
    """

    def __init__(self, study: Study, cell: Cell, root: Path, log: Path) -> None:
        self.study = study
        self.cell = cell
        self.root = root
        self.log = log

    def __call__(self) -> int:
        """Run the command; return its exit status."""
        command = next_command(self.study, self.cell, self.root)
        if command is None:
            return 0
        # Lightning would start as many processes as the job has tasks, which is one.
        environment = {}
        for name, value in os.environ.items():
            if not name.startswith("SLURM_"):
                environment[name] = value
        with self.log.open("a") as log:
            return start_command(command.arguments, log, environment).wait()

    def checkpoint(self) -> Any:
        """Return the same command again; submitit calls this before the cluster preempts the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class ClusterJob:
    """A submitted command with the methods of a process that `run_cells` uses."""

    def __init__(self, job: Any, log: Path) -> None:
        self.job = job
        self.log = log
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while the job is queued or running."""
        if self.returncode is None and self.job.done():
            error = self.job.exception()
            if error is not None:
                with self.log.open("a") as log:
                    log.write(f"Job {self.job.job_id}: {error}\n")
            self.returncode = 1 if error is not None else int(self.job.result())
        return self.returncode

    def terminate(self) -> None:
        """Cancel the job; a running command saves and exits."""
        self.job.cancel(check=False)

    kill = terminate

    def wait(self) -> int:
        """Wait for the end of the job; return its exit status."""
        while self.poll() is None:
            time.sleep(1)
        return int(self.returncode or 0)


class Cluster:
    """A cluster that runs commands as its jobs.

    Args:
        root: the study's folder, which all machines can access.
        options: options of submitit's `AutoExecutor`, such as {slurm_partition: gpu, gpus_per_node: 8, timeout_min:
            720}, and `cluster` (slurm by default; local runs the jobs on this machine, for a test).

    Raises:
        UserError: submitit or Slurm is not installed, an option is unknown, or `timeout_min` is missing.
    """

    def __init__(self, root: Path, options: Mapping[str, Any]) -> None:
        require("submitit", "--cluster")
        import submitit

        if "timeout_min" not in options:
            raise UserError("--cluster: give timeout_min, the minutes after which a job is queued again")
        self.root = root.absolute()
        parameters = dict(options)
        try:
            cluster = str(parameters.pop("cluster", "slurm"))
            self._executor = submitit.AutoExecutor(self.root / "jobs", cluster=cluster)
            self._executor.update_parameters(name="lit-rlvr", **parameters)
        except (RuntimeError, TypeError, ValueError, NameError, KeyError) as error:
            raise UserError(f"--cluster: {' '.join(str(error).split())}") from error

    def start(self, study: Study, cell: Cell, log: Path) -> ClusterJob:
        """Submit the next command of a cell."""
        return ClusterJob(self._executor.submit(ClusterCommand(study, cell, self.root, log.absolute())), log)


class Progress:
    """The progress of a study: each start and end of a cell, in its folder and as a line on stderr.

    Args:
        folder: the study's folder.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.total = len(folder.states)
        self.done = len(folder.with_status("done"))
        self._ended = 0
        self._began = time.monotonic()
        self._started: dict[Cell, tuple[int, float]] = {}  # its number and start time
        if self.done:
            self._say(f"{self.done} of {self.total} cells are done already")

    def started(self, cell: Cell) -> None:
        """Record that a cell runs, and print it."""
        self.folder.set_status(cell, "running")
        number = self.done + len(self._started) + 1
        self._started[cell] = (number, time.monotonic())
        self._say(f"cell {number} of {self.total}: {cell}")

    def ended(self, cell: Cell, error: str | None) -> None:
        """Record the end of a cell, with its error in one line if it failed."""
        self.folder.set_status(cell, "failed" if error else "done", error)
        self._ended += 1
        number, started = self._started[cell]
        now = time.monotonic()
        left = (now - self._began) / self._ended * (self.total - self.done - self._ended)
        self._say(
            f"cell {number} of {self.total}: {f'failed: {error}' if error else 'done'} ({now - started:.0f} s); "
            f"{format_duration(left)} left"
        )

    @staticmethod
    def _say(text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


LOG = "log.txt"
"""Name of the file with a cell's output, in its run folder."""

BEGIN = "$ lit-rlvr "
ERROR_LINE = re.compile(r"lit-rlvr: error: |\w[\w.]*(Error|Exception|Interrupt)\b")
"""Pattern of a line that reports an error: ours, or the last line of a traceback."""

Process = subprocess.Popen[bytes] | ClusterJob


def run_cells(folder: StudyFolder, jobs: int, lock: int, cluster: Cluster | None = None) -> None:
    """Run a study's pending cells, `jobs` at a time, each to its last step.

    When this process is interrupted or killed, the running cells save and exit with it.

    Args:
        folder: the study's folder, which records each cell's progress.
        jobs: cells that run at the same time.
        lock: descriptor that the processes keep open.
        cluster: where to run them; None = as processes of this machine.
    """
    study = folder.study
    root = folder.root
    progress = Progress(folder)
    pending = deque(state.cell for state in folder.with_status("pending"))
    running: dict[Cell, tuple[CellCommand, Process]] = {}

    def start(cell: Cell, command: CellCommand) -> Process:
        log = root / cell.folder / LOG
        with log.open("a") as file:
            print(f"{BEGIN}{command}", file=file, flush=True)
            if cluster is None:
                return start_command(command.arguments, file, os.environ | thread_environment(jobs), pass_fds=[lock])
        return cluster.start(study, cell, log)

    try:
        while pending or running:
            while pending and len(running) < jobs:
                cell = pending.popleft()
                progress.started(cell)
                command = next_command(study, cell, root)
                assert command is not None, "a cell that is done does not wait"
                running[cell] = command, start(cell, command)
            time.sleep(0.1)
            for cell in [cell for cell, (_, process) in running.items() if process.poll() is not None]:
                command, process = running.pop(cell)
                status = process.wait()
                if status:
                    progress.ended(cell, reason(root / cell.folder / LOG, status))
                    continue
                command.finish()
                following = next_command(study, cell, root)
                if following is None:
                    progress.ended(cell, None)
                elif following == command:
                    progress.ended(cell, f"`lit-rlvr {command}` ended without its result")
                else:
                    running[cell] = following, start(cell, following)
    finally:
        stop_commands([process for _, process in running.values()])


def reason(log: Path, status: int) -> str:
    """Return why a run failed: its last reported error, else the signal that killed it, else its last line."""
    lines = log.read_text(errors="replace").rpartition(BEGIN)[2].splitlines()[1:]
    errors = []
    for line in lines:
        if ERROR_LINE.match(line):
            errors.append(line)
    if errors:
        return errors[-1].removeprefix("lit-rlvr: error: ")
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    for line in reversed(lines):
        if line.strip():
            return line
    return f"exit status {status}"
