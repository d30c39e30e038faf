"""Studies through the command line: cells in processes of their own, failures apart, and going on after a kill."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tiny_rewards import judged_as_is
from tiny_runs import CLI, TESTS, assert_same_run, fit, start, summary, to

MISTAKE = {"data": {"init_args": {"prompts_per_rollout": 17}}}
"""More prompts than there are, which only shows when the data are read."""


def study(folder: Path, **changes: Any) -> Path:
    """Two algorithms and a mistake, over some seeds, on 32 completions: two iterations."""
    told = {
        "name": "tiny",
        "base": "tiny.yaml",
        "tasks": {"sums": {"rollout": {"evaluation": {"samples": 2, "sampling": {"temperature": 1.0}}}}},
        "cells": {"grpo": {}, "wrong": MISTAKE, "aapo": {"model": {"class_path": "AAPO"}}},
        "seeds": [0, 1],
        "baseline": "grpo",
        "budget": {"samples": 32},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(told | changes, sort_keys=False))
    return path


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' rewards, in the processes of the cells."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "study.json").read_text())


@pytest.mark.slow
def test_a_study_from_beginning_to_end(run_folder: Path, lit_rlvr: CLI, forks: None) -> None:
    out = run_folder / "out"
    first = lit_rlvr(
        "compare",
        study(run_folder, seeds=[1]),
        "--out",
        out,
        "--jobs",
        2,
        status=2,
        says="1 of 3 cells failed (sums, wrong, seed 1: ",
    )
    assert [
        text for text in ("cell 1 of 3: sums, grpo, seed 1", "cell 3 of 3: done", "left") if text not in first.err
    ] == []

    cells = told(out)["cells"]
    assert {key: told(out)[key] for key in ("name", "baseline")} == {"name": "tiny", "baseline": "grpo"}
    assert [(c["task"], c["name"], c["seed"]) for c in cells] == [
        ("sums", name, 1) for name in ("grpo", "wrong", "aapo")
    ]
    for cell in cells:
        assert cell["run"] == f"runs/sums/{cell['name']}/seed-1"
        assert cell["status"] == ("failed" if cell["name"] == "wrong" else "done")
        assert (cell["error"] is not None) == (cell["name"] == "wrong")
        assert "Traceback" not in (out / cell["run"] / "log.txt").read_text()
    assert "prompts_per_rollout=17" in cells[1]["error"]

    fit(
        lit_rlvr,
        *to("alone"),
        "--budget.samples",
        32,
        "--trainer.max_steps",
        -1,
        "--seed_everything",
        1,
        "--rollout.evaluation.samples",
        2,
        "--rollout.evaluation.sampling.temperature",
        1,
    )
    assert_same_run(out / "runs/sums/grpo/seed-1", run_folder / "alone", resumed=0)
    assert summary(out / "runs/sums/aapo/seed-1")["steps"] == 1, "its reference rollouts count"

    found = json.loads((out / "results.json").read_text())["tasks"]["sums"]["cells"]
    accuracies = {"1": summary(out / "runs/sums/aapo/seed-1")["accuracy_after"]}
    assert found["aapo"]["values"] == pytest.approx(accuracies) and found["wrong"]["values"] == {}
    page = (out / "results.md").read_text()
    assert "wrong on sums, seed 1: failed" in (out / "report.html").read_text() and "report.html" in first.err
    assert "| sums, wrong, seed 1 |" in page and "cannot reach 0.05" in page
    pictures = sorted(path.stem for path in (out / "figures/sums").glob("*.png"))
    assert {*pictures} == {
        "reward", "accuracy", "entropy", "entropy_arithmetic", "correct_count", "length", "zero_advantage",
        "zero_advantage_base", "loss", "unsolved", "pass_at_k",
    }  # fmt: skip
    assert all(f"(figures/sums/{name}.png)" in page for name in pictures)

    written = {c["run"]: (out / c["run"] / "summary.json").stat().st_mtime_ns for c in cells if c["status"] == "done"}
    mended = {"cells": {"grpo": {}, "wrong": {}, "aapo": {"model": {"class_path": "AAPO"}}}}
    second = lit_rlvr("compare", study(run_folder, seeds=[1], **mended), "--out", out, status=0)
    assert "2 of 3 cells are done already" in second.err and {c["status"] for c in told(out)["cells"]} == {"done"}
    assert {run: (out / run / "summary.json").stat().st_mtime_ns for run in written} == written
    assert_same_run(out / "runs/sums/wrong/seed-1", run_folder / "alone", resumed=0)


@pytest.mark.exhaustive
def test_when_a_cell_is_done_its_model_is_evaluated(
    run_folder: Path, lit_rlvr: CLI, forks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first comparison has no suites; adding some evaluates the models that are there, and the one before."""
    monkeypatch.setenv("LIT_RLVR_CACHE", str(run_folder / "cache"))
    rows = [{"problem": f"{i}?", "answer": str(i), "subject": "ab"[i % 2]} for i in range(6)]
    (run_folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {
        "data": {"class_path": "TextMath", "init_args": {"test": str(run_folder / "more.jsonl")}},
        "rewards": [judged_as_is("first_token")],
    }
    (run_folder / "own.yaml").write_text(yaml.safe_dump(own))
    cells = {"cells": {"grpo": {}, "aapo": {"model": {"class_path": "AAPO"}}}, "seeds": [0]}
    out = run_folder / "out"
    assert lit_rlvr("compare", study(run_folder, **cells), "--out", out).status == 0
    trained = (out / "runs/sums/grpo/seed-0/summary.json").stat().st_mtime_ns

    suites = {"mine": ["own.yaml", {"suite": "other=more.jsonl", "samples": 2, "max_tokens": 4}]}
    lit_rlvr(
        "compare",
        study(run_folder, **cells, suites=["maths500"]),
        "--out",
        out,
        status=2,
        says="no suite 'maths500'; did you mean 'math500'",
    )
    lit_rlvr("compare", study(run_folder, **cells, suites=suites, diversity=["SelfBLEU4"]), "--out", out, status=0)
    assert (out / "runs/sums/grpo/seed-0/summary.json").stat().st_mtime_ns == trained
    found = json.loads((out / "results.json").read_text())["tasks"]["sums"]
    both = {name: cell["suites"]["mine"]["suites"] for name, cell in found["cells"].items()}
    evaluated = json.loads((out / "runs/sums/aapo/seed-0/evaluation/results.json").read_text())
    assert both["aapo"]["own"]["pass@8"]["mean"] == evaluated["own"]["pass@8"] and evaluated["other"]["n"] == 2
    assert [*found["before_suites"]["mine"]["suites"]] == ["own", "other"]
    before, after = (
        json.loads((out / "runs/sums" / name / "settings.json").read_text())
        for name in ("before training", "grpo/seed-0/evaluation")
    )
    assert before | {"model": ""} == after | {"model": ""}, "the model before training is asked in the same way"
    assert [suite["sampled"]["max_tokens"] for suite in before["suites"].values()] == [8, 4], "the run's, and its own"
    page = (out / "results.md").read_text()
    assert [
        text for text in ("### mine: pass@1", "| before training |", "### mine: self_bleu_4") if text not in page
    ] == []
    again = lit_rlvr("compare", study(run_folder, **cells, suites=suites, diversity=["SelfBLEU4"]), "--out", out)
    assert (again.status, "2 of 2 cells are done already" in again.err, "cell 1" in again.err) == (0, True, False)
    assert not [*(run_folder / "cache/exported").glob("[!.]*")], "weights are not kept twice"


@pytest.mark.exhaustive
def test_cells_are_jobs_of_a_cluster(
    run_folder: Path, lit_rlvr: CLI, importable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With submitit's own executor for this machine in place of Slurm's; one job fails."""
    path = study(run_folder, cells={"grpo": {}, "wrong": MISTAKE}, seeds=[0])
    out = run_folder / "out"
    lit_rlvr(
        "compare",
        path,
        "--out",
        out,
        "--jobs",
        2,
        "--cluster",
        "{cluster: local, timeout_min: 10}",
        status=2,
        says="1 of 2 cells failed (sums, wrong, seed 0: ",
    )
    assert [cell["status"] for cell in told(out)["cells"]] == ["done", "failed"]
    assert "prompts_per_rollout=17" in told(out)["cells"][1]["error"] and len([*(out / "jobs").glob("*.pkl")]) >= 2
    assert summary(out / "runs/sums/grpo/seed-0")["steps"] == 2
    for options, said in (
        ("{gpus: 8}", "--cluster: give timeout_min"),
        ("{cluster: nowhere, timeout_min: 1}", "--cluster: "),
        ("{gpus: 8, timeout_min: 1, cluster: local}", "--cluster: "),
        ("{slurm_partition: a, timeout_min: 1}", "--cluster: "),  # there is no Slurm here
    ):
        lit_rlvr("compare", path, "--out", out, "--cluster", options, status=2, says=said)


@pytest.mark.exhaustive
def test_killed_in_a_cell_a_study_goes_on_exactly(run_folder: Path, lit_rlvr: CLI, importable: None) -> None:
    """The cell saves and ends with its parent, and the next comparison waits for that."""
    changes = {"checkpoint": {"every": 0}, "rollout": {"rewards": [judged_as_is("held")]}}
    path = study(run_folder, cells={"grpo": changes}, seeds=[0], budget={"samples": 480})
    (run_folder / "hold").touch()  # so that the cell is in the middle when its parent is killed
    out, run = run_folder / "out", run_folder / "out/runs/sums/grpo/seed-0"
    parent = start(["compare", path, "--out", out])
    wait_for(lambda: (run_folder / "holding").is_file() and parent.poll() is None)
    (child,) = [p for p in psutil.Process(parent.pid).children() if "fit" in p.cmdline()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    (run_folder / "hold").unlink()
    assert told(out)["cells"][0]["status"] == "running"
    lit_rlvr("compare", path, "--out", out, status=0)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert told(out)["cells"][0]["status"] == "done"
    fit(
        lit_rlvr,
        *to("whole"),
        "--budget.samples",
        480,
        "--trainer.max_steps",
        -1,
        "--checkpoint.every",
        0,
        "--rollout.rewards",
        json.dumps([judged_as_is("held")]),
        "--rollout.evaluation.samples",
        2,
        "--rollout.evaluation.sampling.temperature",
        1,
    )
    resumed = summary(run)["resumed_from_step"]
    assert 0 < resumed < 30, "it had saved when its parent was killed"
    assert_same_run(run, run_folder / "whole", resumed=resumed)


@pytest.mark.exhaustive
def test_ctrl_c_stops_the_cells_too(run_folder: Path, lit_rlvr: CLI, importable: None) -> None:
    path = study(run_folder, cells={"grpo": {}}, seeds=[0], budget={"steps": 5000})
    out, run = run_folder / "out", run_folder / "out/runs/sums/grpo/seed-0"
    parent = start(["compare", path, "--out", out])
    wait_for((run / "completions.jsonl").is_file)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=600)
    assert "run the same command again to continue" in err
    assert parent.returncode == 130 and "Traceback" not in err, err
    assert told(out)["cells"][0]["status"] == "interrupted"
    assert summary(run)["stopped"] == "stopped by SIGTERM"


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
