"""Faults of training steps in whole runs: what the run folder says, resumes, and two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import FIT, assert_same_run, fit, launch, metrics, summary, to

CLI = Callable[..., Any]
FAULTY = ("--model", "tiny_faults.Faulty", "--model.init_args.tokens_per_microbatch", "160")
DDP = ("--trainer.strategy", "ddp", "--trainer.devices", "2")


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


def test_what_was_skipped_is_said_saved_and_cleared(
    run_folder: Path, lit_rlvr: CLI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "nan 2 0")
    result = fit(lit_rlvr, *FAULTY)
    saved = run_folder / "run" / "skipped" / "step-000002-rank-0.json"
    assert result.err.count("the step is skipped, its batch is in run/skipped/step-000002-rank-0.json") == 1
    assert saved.is_file() and summary(run_folder / "run")["steps"] == 6
    row = metrics(run_folder / "run")[2]
    assert row["train/loss"] == row["train/grad_norm"] == "" and float(row["train/lr"]) == pytest.approx(1e-3)
    monkeypatch.setenv("FAULT", "none 0 0")
    fit(lit_rlvr, *FAULTY, "--overwrite", "true", "--trainer.max_steps", 1)
    assert not saved.exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("kind", ["nan", "memory"])
def test_two_processes_agree_on_a_fault_of_one(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: int
) -> None:
    """As one process that has it (a step skipped), or as none (memory)."""
    monkeypatch.setenv("FAULT", "nan 2 0" if kind == "nan" else "none 0 0")
    one = launch([*FIT, *FAULTY, *to("one")], run_folder)
    monkeypatch.setenv("FAULT", f"{kind} 2 {where}")
    two = launch([*FIT, *FAULTY, *DDP, *to("two")], run_folder)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    for ours, theirs in zip(metrics(run_folder / "two"), metrics(run_folder / "one"), strict=True):
        assert ours["train/skipped_steps"] == theirs["train/skipped_steps"]
        assert ours["rollout/length"] == theirs["rollout/length"], "the same weights, so the same completions"
    said = "not finite" if kind == "nan" else "out of memory in a micro-batch"
    assert two.stderr.count(said) == (2 if kind == "nan" else 1)
    if kind == "memory":
        assert ("another rank" in two.stderr) is (where == 1), "the first process says it"
        return
    saved = [json.loads((run_folder / "two" / "skipped" / f"step-000002-rank-{k}.json").read_text()) for k in (0, 1)]
    assert [all(batch["finite"] for batch in record["microbatches"]) for record in saved] == [where == 1, where == 0]
