"""Two machines of one process each do what one machine does; a Slurm job of servers and a trainer begins and ends."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from tiny_runs import CONSOLE_SCRIPT, FIT, STRATEGIES, child_environment, in_two_processes, port_for_later, summary, to

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
@pytest.mark.parametrize(
    ("launcher", "strategy"),
    [pytest.param(torchrun, "ddp", marks=pytest.mark.exhaustive), (slurm, "fsdp2")],
)
def test_two_machines_do_what_one_does(run_folder: Path, launcher: Launcher, strategy: str) -> None:
    in_two_processes(run_folder, [*FIT, *STRATEGIES[strategy], *to("one")])
    port, processes = port_for_later(), []
    for machine in range(2):
        prefix, variables = launcher(port, machine)
        command = [*FIT, *STRATEGIES[strategy], *MACHINES, *to("two")]
        environment = child_environment() | variables
        processes.append(
            subprocess.Popen([*prefix, CONSOLE_SCRIPT, *command], env=environment, stderr=subprocess.PIPE, text=True)
            if prefix
            else Forked(command, None, environment)
        )
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert summary(run_folder / "two")["weights_sha256"] == summary(run_folder / "one")["weights_sha256"]


SLURM_COMMANDS = {
    "srun": 'echo "$*" >> srun.lines; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "$*" >> scontrol.lines; echo "${@: -1}" | tr , "\\n"',
    "sleep": "exec /bin/sleep 0.05",  # the pause before a server is started again
    "lit-rlvr": """
        echo "$@" >> $1.lines
        [ $1 = plan ] && echo "Servers: lit-rlvr serve --max-num-seqs 64" && exit
        if [ $1 = serve ]; then
          [ -n "$REFUSED" ] && exit 2
          [ $(wc -l < serve.lines) = 1 ] && exit 1  # it crashes at first
          trap 'echo ended >> serve.lines; exit 143' TERM
          while true; do /bin/sleep 0.05; done
        fi
        env | grep ^SLURM | sort > fit.variables
        trap 'echo stopped >> fit.lines; exit 0' TERM
        until [ "$(wc -l < serve.lines)" -gt 1 ]; do /bin/sleep 0.05; done
        for k in $(seq $FIT_TENTHS); do /bin/sleep 0.1; done
        exit $FIT_STATUS""",
}
"""What the batch script calls, for one machine of each kind: a server that crashes once, and a run."""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen[str]]:
    for name, text in SLURM_COMMANDS.items():
        (tmp_path / name).write_text("#!/bin/bash\n" + text)
        (tmp_path / name).chmod(0o755)
    nodes = {"SLURM_JOB_NODELIST_HET_GROUP_0": "t1,t2", "SLURM_JOB_NODELIST_HET_GROUP_1": "s1,s2"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NUM_NODES_HET_GROUP_0": "2"}

    def start(tenths: int, refused: str = "", status: int = 3, restarts: int = 0) -> subprocess.Popen[str]:
        run = {"FIT_TENTHS": str(tenths), "REFUSED": refused, "FIT_STATUS": str(status)}
        job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
        script = Path(__file__).parents[2] / "configs/slurm/servers.sbatch"
        return subprocess.Popen(
            ["bash", script, "smollm2", "--config", "quickstart", "--ckpt_path", "last"],
            cwd=tmp_path,
            text=True,
            stderr=subprocess.PIPE,
            env=os.environ | nodes | path | run | job,
        )

    return start


@pytest.mark.slow
def test_a_job_of_servers_and_a_trainer_ends_with_the_run(
    sbatch: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    lit_rlvr: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = sbatch(1)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 3, err
    *served, last = (tmp_path / "serve.lines").read_text().splitlines()
    assert (
        last == "ended"
        and served
        == [
            "serve --model smollm2 --dtype bfloat16 --nccl --host 0.0.0.0 --port 8000 --max-num-seqs 64 "
            "--tensor-parallel-size 4 --data-parallel-size 2"
        ]
        * 2
    ), "a server that crashes is started again"
    (line,) = (tmp_path / "fit.lines").read_text().splitlines()
    assert "--rollout.engine.init_args.urls [http://s1:8000,http://s2:8000]" in line and "--ckpt_path last" in line
    variables = (tmp_path / "fit.variables").read_text()
    for wanted in ("SLURM_NODELIST=t1,t2\n", "SLURM_NNODES=2\n", "SLURM_NTASKS=16\n", "SLURM_NTASKS_PER_NODE=8\n"):
        assert wanted in variables
    with pytest.raises(SystemExit, match="0"):
        lit_rlvr(*line.split(), "--print_config")
    parsed = capsys.readouterr().out
    assert [text for text in ("num_nodes: 2", "- http://s2:8000", "NCCLTransfer") if text not in parsed] == []


@pytest.mark.slow
def test_the_end_of_a_jobs_time_reaches_the_trainer_alone(
    sbatch: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    job = sbatch(600)
    while not (tmp_path / "fit.variables").exists() or (tmp_path / "serve.lines").read_text().count("\n") < 2:
        assert job.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    job.terminate()
    assert job.wait(60) == 0, "the run's own status, once it has saved"
    assert (tmp_path / "fit.lines").read_text().endswith("stopped\n")


@pytest.mark.parametrize(("status", "is_requeued"), [(75, True), (137, True), (143, True), (2, False), (0, False)])
def test_a_job_starts_again_where_that_helps(
    sbatch: Callable[..., subprocess.Popen[str]], tmp_path: Path, status: int, is_requeued: bool
) -> None:
    """One process that ends takes the others with it, which would wait for it in NCCL."""
    job = sbatch(1, status=status, restarts=1)
    _, err = job.communicate(timeout=60)
    assert job.returncode == status, err
    assert ("requeue 7" in (tmp_path / "scontrol.lines").read_text().splitlines()) == is_requeued
    started = (tmp_path / "srun.lines").read_text().splitlines()
    (trainer,) = [line for line in started if "--het-group=0" in line]
    (planned,) = (tmp_path / "plan.lines").read_text().splitlines()
    assert planned.endswith("--ckpt_path last --model.init_args.model smollm2 --gpus 8x80GB --servers 4")
    assert any("--max-num-seqs 64 --tensor-parallel-size 4" in line for line in started)
    assert "--kill-on-bad-exit=1" in trainer.partition(" env ")[0].split()
    assert trainer.endswith("--overwrite false --ckpt_path last"), "a job that starts again goes on"


def test_a_job_whose_servers_are_refused_ends(sbatch: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    job = sbatch(600, refused="yes")
    _, err = job.communicate(timeout=60)
    assert job.returncode == 1 and "all servers have ended, so the run is stopped" in err
