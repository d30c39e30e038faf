"""`fit --supervise N`: which ends of a run are followed by another start, and from where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from tiny_runs import CONSOLE_SCRIPT, FIT, STRATEGIES, assert_same_run, child_environment, fit, summary, to

from lit_rlvr.cli.lightning_cli import value_of
from lit_rlvr.cli.supervise import supervise
from lit_rlvr.common.files import MEMORY_FILE
from lit_rlvr.common.run_files import read_live
from lit_rlvr.errors import UserError
from lit_rlvr.run.monitor import ROLLBACKS

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
run = Path("run")
starts = run / "starts.jsonl"
number = len(starts.read_text().splitlines()) if starts.exists() else 0
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "config.yaml").touch()
with starts.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
exec(PLAN[number])
""".replace("PLAN", "json.loads(Path('plan.json').read_text())")
SAVE = "(run / f'checkpoints/step-{number + 1:06d}.ckpt').touch();"
SAVE_SAME = "(run / 'checkpoints/step-000009.ckpt').touch();"
SHRINK = f"(run / {MEMORY_FILE!r}).write_text(str(number));"
ROLL_BACK = f"(run / {ROLLBACKS!r}).write_text(str(number));"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def supervised(
    folder: Path, plan: list[str], limit: int, *arguments: str, resumes: bool = False
) -> tuple[int, list[list[str]]]:
    """Supervise a process that does at its n-th start what the n-th line says; its status, and what each start got."""
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "program.py").write_text(SCRIPT)
    command = [sys.executable, "program.py"]
    status = supervise(command, arguments, folder / "run", limit, resumes=resumes)
    return status, [json.loads(line) for line in (folder / "run/starts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("plan", "limit", "status", "starts"),
    [
        (["sys.exit(0)"], 1, 0, 1),
        (["sys.exit(2)"], 9, 2, 1),  # refused before anything was saved
        ([SAVE + "sys.exit(2)", "sys.exit(0)"], 1, 0, 2),  # an engine that died for good, for example
        ([KILLED, "sys.exit(0)"], 1, 0, 2),
        ([KILLED] * 3, 2, 137, 3),
        ([SAVE + KILLED] * 4 + [KILLED], 1, 137, 5),  # progress counts from the last checkpoint
        ([SHRINK + "sys.exit(2)"] * 2 + ["sys.exit(0)"], 1, 0, 3),  # memory ran out, before anything was saved
        ([SHRINK + "sys.exit(2)", "sys.exit(2)"], 9, 2, 2),
        ([ROLL_BACK + "sys.exit(2)"] * 2 + ["sys.exit(0)"], 1, 0, 3),  # back to the checkpoint that it began with
        (["sys.exit(130)"], 9, 130, 1),  # Ctrl-C is the user's wish
        ([SAVE + "sys.exit(141)"], 9, 141, 1),  # `fit | head`
    ],
)
def test_only_some_ends_are_followed_by_a_start(
    plan: list[str], limit: int, status: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, seen = supervised(tmp_path, plan, limit, "--config", "c", "--overwrite", "true", "--x=1")
    assert (found, len(seen)) == (status, starts)
    assert seen[0] == ["--config", "c", "--overwrite", "true", "--x=1"]
    assert all(arguments == seen[0] + RESUME for arguments in seen[1:])


OVERWRITE, RESUME, GIVEN = (
    ["--overwrite", "true"],
    ["--overwrite", "false", "--ckpt_path", "last"],
    ["--ckpt_path", "other/checkpoints/step-000004.ckpt"],
)


@pytest.mark.parametrize(
    ("plan", "given", "starts"),
    [
        (["sys.exit(2)"], OVERWRITE, [OVERWRITE]),  # refused, and the earlier run is put back
        ([SHRINK + "sys.exit(2)", "sys.exit(0)"], OVERWRITE, [OVERWRITE, OVERWRITE]),
        ([SAVE_SAME + KILLED, "sys.exit(0)"], OVERWRITE, [OVERWRITE, OVERWRITE + RESUME]),
        (["sys.exit(2)", "sys.exit(0)"], GIVEN, [GIVEN, GIVEN]),
        ([KILLED, SAVE_SAME + KILLED, "sys.exit(0)"], GIVEN, [GIVEN, GIVEN, GIVEN + RESUME]),
    ],
)
def test_a_restart_goes_on_from_what_the_run_has_saved_and_from_nothing_older(
    plan: list[str], given: list[str], starts: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / "run/checkpoints/step-000009.ckpt"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    os.utime(earlier, (1, 1))
    assert supervised(tmp_path, plan, 2, *given, resumes=given == GIVEN)[1] == starts


def test_what_a_dead_run_leaves_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks, engine and workers, before another start."""
    monkeypatch.chdir(tmp_path)
    orphan = "import subprocess; p = subprocess.Popen(['sleep', '600']); (run / 'pid').write_text(str(p.pid));" + KILLED
    assert supervised(tmp_path, [orphan, "sys.exit(0)"], 1)[0] == 0
    stat = Path("/proc", (tmp_path / "run/pid").read_text(), "stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_a_stopped_run_is_not_started_again_however_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error may end it before it has finished its iteration."""
    monkeypatch.chdir(tmp_path)
    errs = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(2)); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    )
    status, seen = supervised(tmp_path, [SAVE + errs, "sys.exit(0)"], 1)
    assert (status, len(seen)) == (2, 1)


def test_options_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert value_of("--supervise", ["--a", "--supervise", "3", "--b"]) == (3, ["--a", "--b"])
    assert value_of("--supervise", ["--supervise=4"]) == (4, []) and value_of("--supervise", ["--a"]) is None
    with pytest.raises(UserError, match="--supervise: 'x' is not a whole number"):
        value_of("--supervise", ["--supervise", "x"])
    with pytest.raises(UserError, match="--supervise: 0"):
        supervise([], [], tmp_path, 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(UserError, match="--max-restarts"):
        supervise([], [], tmp_path, 1)


def wait_for_step(run: Path, step: int) -> int:
    """Wait until the run is at a step; its process."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        live = read_live(run)
        if live is not None and live["step"] >= step and live["stage"] != "ended":
            return int(live["pid"])
        time.sleep(0.05)
    raise AssertionError(f"no step {step}: {live}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_hung_run_ends_as_if_nothing_had_been(
    run_folder: Path, lit_rlvr: object, number: signal.Signals
) -> None:
    """The real command: it goes on exactly; a stopped process is one whose heartbeat has ended."""
    options = ("--checkpoint.every", "1", "--trainer.max_steps", "60")
    fit(lit_rlvr, *to("whole"), *options)
    run = run_folder / "run"
    command = [str(CONSOLE_SCRIPT), "fit"]
    done: list[int] = []
    environment = child_environment()

    def work() -> None:
        done.append(supervise(command, [*FIT[1:], *options], run, 2, silence=20.0))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("signal.signal", lambda *_: None)  # not in the main thread
        thread = threading.Thread(target=work)
        thread.start()
        os.kill(wait_for_step(run, 8), number)
        thread.join(timeout=600)
    assert done == [0]
    assert_same_run(
        run, run_folder / "whole", resumed=json.loads((run / "summary.json").read_text())["resumed_from_step"]
    )


@pytest.mark.slow
def test_a_signal_to_the_supervisor_stops_the_run_and_no_other_begins(run_folder: Path) -> None:
    options = ["--checkpoint.every", "1", "--trainer.max_steps", "2000", "--supervise", "5"]
    process = subprocess.Popen(
        [str(CONSOLE_SCRIPT), *FIT, *options], env=child_environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for_step(run_folder / "run", 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert "starting again" not in err and "SIGTERM: finishing this iteration" in err


ISOLATED = "[{class_path: FunctionReward, init_args: {path: tiny_rewards.early_ends, isolate: true}}]"


def find_victim(supervisor: psutil.Process, kind: str) -> psutil.Process:
    """A process of a supervised run: its first rank, its second one, or a reward worker."""
    (first,) = supervisor.children()
    if kind == "rank 0":
        return first
    children = first.children(recursive=True)
    workers = [child for child in children if "lit_rlvr.workers.worker" in child.cmdline()]
    ranks = [child for child in children if child.environ().get("LOCAL_RANK") == "1" and child not in workers]
    return (workers if kind == "worker" else ranks)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "starts"),
    [
        ("worker", ("--rollout.rewards", ISOLATED), 1),  # the pool starts another one
        ("rank 1", STRATEGIES["ddp"], 2),
        ("rank 0", STRATEGIES["fsdp2"], 2),
    ],
    ids=["worker", "rank 1 of DDP", "rank 0 of FSDP2"],
)
def test_a_run_of_which_a_process_is_killed_takes_all_its_steps(
    run_folder: Path, kind: str, options: tuple[str, ...], starts: int
) -> None:
    command = [*FIT, *options, "--checkpoint.every", "5", "--trainer.max_steps", "60", "--supervise", "3"]
    command += ["--rollout.validate_every_rollouts", "60"]
    with (run_folder / "said").open("w") as said:
        supervisor = psutil.Popen([str(CONSOLE_SCRIPT), *command], env=child_environment(), stderr=said)
    try:
        wait_for_step(run_folder / "run", 5)
        find_victim(supervisor, kind).kill()
        status = supervisor.wait(timeout=400)
    finally:
        for process in [*supervisor.children(recursive=True), supervisor] if supervisor.is_running() else []:
            process.kill()
    err = (run_folder / "said").read_text()
    assert status == 0, err
    assert err.count("starting again from step-") == starts - 1 and "Traceback" not in err, err
    assert summary(run_folder / "run")["steps"] == 60
    assert (summary(run_folder / "run")["resumed_from_step"] > 0) == (starts > 1)
