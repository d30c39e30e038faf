"""Runs cells as jobs of a cluster (Slurm), through submitit."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_rlvr.compare.folder import next_command
from lit_rlvr.compare.study import Cell, Study
from lit_rlvr.errors import UserError
from lit_rlvr.evaluation.processes import start_command
from lit_rlvr.packages import require

FOLDER = "jobs"
"""Folder for submitit's scripts and logs, in the study's folder."""


class ClusterCommand:
    """The next command of a cell, as a job runs it on one machine; the cluster queues a preempted job again.

    Args:
        log: receives the command's output.
    """

    def __init__(self, study: Study, cell: Cell, root: Path, log: Path) -> None:
        self.study, self.cell, self.root, self.log = study, cell, root, log

    def __call__(self) -> int:
        """Run the command; return its exit status."""
        command = next_command(self.study, self.cell, self.root)
        if command is None:
            return 0
        # Lightning would start as many processes as the job has tasks, which is one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        with self.log.open("a") as log:
            return start_command(command.arguments, log, environment).wait()

    def checkpoint(self) -> Any:
        """Return the same command again; submitit calls this before the cluster preempts the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class ClusterJob:
    """A submitted command with the methods of a process that `run_cells` uses."""

    def __init__(self, job: Any, log: Path) -> None:
        self.job, self.log = job, log
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
        while self.poll() is None:
            time.sleep(1)
        return int(self.returncode or 0)


class Cluster:
    """Submits commands as jobs.

    Args:
        root: the study's folder, which all machines can access.
        options: of submitit's `AutoExecutor`, such as {slurm_partition: gpu, gpus_per_node: 8, timeout_min: 720}, and
            `cluster` (slurm by default; local runs the jobs on this machine, for a test).

    Raises:
        UserError: submitit or Slurm is not installed, an option is unknown, or `timeout_min` is missing.
    """

    def __init__(self, root: Path, options: Mapping[str, Any]) -> None:
        require("submitit", "--cluster")
        import submitit

        if "timeout_min" not in options:
            raise UserError("--cluster: give timeout_min, the minutes after which a job is queued again")
        self.root, parameters = root, dict(options)
        try:
            cluster = str(parameters.pop("cluster", "slurm"))
            self._executor = submitit.AutoExecutor(root.absolute() / FOLDER, cluster=cluster)
            self._executor.update_parameters(name="lit-rlvr", **parameters)
        except (RuntimeError, TypeError, ValueError, NameError, KeyError) as error:
            raise UserError(f"--cluster: {' '.join(str(error).split())}") from error

    def start(self, study: Study, cell: Cell, log: Path) -> ClusterJob:
        root = self.root.absolute()
        return ClusterJob(self._executor.submit(ClusterCommand(study, cell, root, log.absolute())), log)
