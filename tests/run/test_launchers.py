"""Two machines of one process each, by torchrun and by SLURM's variables, do what one machine does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import CONSOLE_SCRIPT, FIT, STRATEGIES, child_environment, in_two_processes, summary, to

from lit_rlvr.engines.transfer import free_port

Launcher = Callable[[int, int], tuple[list[str], dict[str, str]]]
MACHINES = ("--trainer.num_nodes", "2", "--trainer.devices", "1")


def torchrun(port: int, machine: int) -> tuple[list[str], dict[str, str]]:
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "--no-python"], {}


def slurm(port: int, machine: int) -> tuple[list[str], dict[str, str]]:
    rank = {"SLURM_PROCID": str(machine), "SLURM_NODEID": str(machine), "SLURM_LOCALID": "0"}
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "run", "SLURM_NODELIST": "localhost", "SLURM_NNODES": "2"}
    return [], {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "MASTER_PORT": str(port), **rank, **job}


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "strategy"), [(torchrun, "ddp"), (slurm, "fsdp2")])
def test_two_machines_do_what_one_does(run_folder: Path, launcher: Launcher, strategy: str) -> None:
    in_two_processes(run_folder, [*FIT, *STRATEGIES[strategy], *to("one")])
    port, processes = free_port(), []
    for machine in range(2):
        prefix, variables = launcher(port, machine)
        command = [*prefix, CONSOLE_SCRIPT, *FIT, *STRATEGIES[strategy], *MACHINES, *to("two")]
        processes.append(
            subprocess.Popen(command, env=child_environment() | variables, stderr=subprocess.PIPE, text=True)
        )
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert summary(run_folder / "two")["weights_sha256"] == summary(run_folder / "one")["weights_sha256"]
