"""Faults of training steps in whole runs: what the run folder says, resumes, and two processes."""

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from forked import Forked
from tiny_runs import (
    CLI,
    FIT,
    assert_same_run,
    child_environment,
    fit,
    in_two_processes,
    launch,
    metrics,
    summary,
    to,
)

from lit_rlvr.distributed.checkpoints import last_checkpoint, read_rest
from lit_rlvr.errors import START_AGAIN, UserError
from lit_rlvr.run import ranks

FAULTY = ("--model", "tiny_faults.Faulty", "--model.init_args.compute.tokens_per_microbatch", "160")
DDP = ("--trainer.strategy", "ddp", "--trainer.devices", "2")
SHARDED = ("--config", "strategy/fsdp2_cpu")
LOWERED = "an earlier start ran out of memory: at most 80 tokens at once"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nan", "memory"])
def test_a_run_with_a_fault_goes_on_exactly_after_a_stop(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What is counted and the smaller micro-batches are in the checkpoint: the fault is before it."""
    monkeypatch.setenv("FAULT", f"{kind} 2 0")
    fit(lit_rlvr, *FAULTY, *to("whole"))
    fit(lit_rlvr, *FAULTY, *to("parts"), "--trainer.max_steps", 3)
    fit(lit_rlvr, *FAULTY, *to("parts"), "--ckpt_path", "last")
    assert_same_run(run_folder / "parts", run_folder / "whole", resumed=3)
    counts = [row["train/skipped_steps"] for row in metrics(run_folder / "whole")[1:]]
    assert counts == (["0.0", *["1.0"] * 5] if kind == "nan" else ["0.0"] * 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "where", "strategy"),
    [("nan", 1, SHARDED), ("memory", 1, DDP), pytest.param("nan", 1, DDP, marks=pytest.mark.exhaustive)],
)
def test_two_processes_agree_on_a_fault_of_one(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch, kind: str, where: int, strategy: tuple[str, ...]
) -> None:
    """As one process that has it (a step skipped), or as none (memory)."""
    monkeypatch.setenv("FAULT", "nan 2 0" if kind == "nan" else "none 0 0")
    fit(lit_rlvr, *FAULTY, *to("one"))
    monkeypatch.setenv("FAULT", f"{kind} 2 {where}")
    said_by_two = in_two_processes(run_folder, [*FIT, *FAULTY, *strategy, *to("two")])
    for ours, theirs in zip(metrics(run_folder / "two"), metrics(run_folder / "one"), strict=True):
        assert ours["train/skipped_steps"] == theirs["train/skipped_steps"]
        assert ours["rollout/length"] == theirs["rollout/length"], "the same weights, so the same completions"
    said = "not finite" if kind == "nan" else "out of memory in a micro-batch"
    assert said_by_two.count(said) == (2 if kind == "nan" else 1)
    if kind == "memory":
        assert ("another rank" in said_by_two) is (where == 1), "the first process says it"
        return
    saved = [json.loads((run_folder / "two" / "skipped" / f"step-000002-rank-{k}.json").read_text()) for k in (0, 1)]
    finite = [all(batch["finite"] for batch in record["microbatches"]) for record in saved]
    assert finite == ([where == 1, where == 0] if strategy == DDP else [False, False]), "shards are shared"


@pytest.mark.slow
def test_out_of_memory_with_shards_makes_the_next_start_smaller(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process cannot try again alone, because the others wait for it in the middle of a layer."""
    monkeypatch.setenv("FAULT", "memory 2 1")
    two = launch([*FIT, *FAULTY, *SHARDED], run_folder)
    assert two.returncode in (START_AGAIN, -signal.SIGKILL) and "Traceback" not in two.stderr
    assert "Tried to allocate 2.00 GiB; with sharded weights the step cannot be retried here" in two.stderr
    assert "at most 80 tokens at once instead of 160" in two.stderr
    monkeypatch.setenv("FAULT", "memory 2 0")
    resumed = fit(lit_rlvr, *FAULTY, "--ckpt_path", "last", "--trainer.max_steps", 3)
    assert resumed.err.count(LOWERED) == 1 and "trying again" not in resumed.err
    assert summary(run_folder / "run")["resumed_from_step"] == 1
    assert LOWERED not in fit(lit_rlvr, *FAULTY, "--ckpt_path", "last").err, "the checkpoint has it"
    assert read_rest(last_checkpoint(run_folder / "run"))["rlvr"]["tokens"] == [160, 80]


# ---- a process that ends ----------------------------------------------------------------------------------

SAID = {
    "user": "lit-rlvr: error: the licence of this process has expired",
    "kill": "a process of the run is lost|terminated with code -9",
}


def end_one(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: int) -> tuple[str, float, int]:
    """Let one of two processes end in the third step; what they said, the seconds until they were gone, and the first
    one's status."""
    monkeypatch.setenv("FAULT", f"{kind} 3 {where}")
    arguments = [*FIT, *FAULTY, *DDP, "--trainer.max_steps", "5000", "--rollout.validate_every_rollouts", "2500"]
    with (folder / "said").open("w") as said:
        first = Forked(arguments, said, child_environment(), cwd=folder)
    samples, deadline = folder / "run" / "completions.jsonl", time.monotonic() + 180
    while not (samples.is_file() and samples.read_text().count('"sample": 0,') >= 4):  # two steps of two groups
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    started = time.monotonic()
    try:
        while any(is_running(process) for process in processes):
            assert time.monotonic() - started < 60, (folder / "said").read_text()
            time.sleep(0.1)
    finally:
        seconds = time.monotonic() - started
        os.killpg(first.pid, signal.SIGKILL)
        status = first.wait()
    return (folder / "said").read_text(), seconds, status


def is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "where", "statuses"),
    [("user", 1, {2}), ("kill", 0, {-signal.SIGKILL})],
)
def test_however_a_process_ends_the_others_end_within_a_minute(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: int, statuses: set[int]
) -> None:
    """The cause is said once. Lightning kills the first process some seconds after another, if it is still there."""
    err, seconds, status = end_one(run_folder, monkeypatch, kind, where)
    print(f"{kind} in process {where}: {seconds:.0f} s, status {status}\n{err}")
    assert len(re.findall(SAID[kind], err)) == 1 and "Traceback" not in err, err
    assert status in statuses | {-signal.SIGKILL}


def test_processes_that_begin_from_different_checkpoints_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run folder of each machine is on its own disk, for example, and only the first one's has checkpoints."""
    ranks.check_same_checkpoint(None)
    monkeypatch.setattr(ranks, "gather_objects", lambda name: ["step-000004.ckpt", name])
    ranks.check_same_checkpoint("run/checkpoints/step-000004.ckpt")
    with pytest.raises(UserError, match=r"process 0 begins from step-000004\.ckpt, process 1 from no checkpoint"):
        ranks.check_same_checkpoint(None)
