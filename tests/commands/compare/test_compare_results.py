"""Tables and figures of made-up runs, against values computed by hand."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lit_rlvr.commands.compare.study import Cell, Study
from lit_rlvr.commands.compare.study_results import (
    FinishedRun,
    against_baseline,
    quarters,
    read_cell,
    study_results,
)
from lit_rlvr.commands.compare.study_tables import report, suite_tables

VALUES = {"base": [0.2, 0.3, 0.4], "other": [0.3, 0.5, 0.7]}
SECONDS = {"sync": 0.0, "generate": 1.0, "score": 0.5, "train": 2.0, "step": 4.0}
SUMMARY = {"seconds_per_step": SECONDS, "peak_memory_mb": 100, "stopped": None}


def made_up(budget: str = "steps") -> tuple[Study, list[FinishedRun]]:
    """Two algorithms over three seeds, each with a validation before and two iterations."""
    cells = [Cell("task", name, seed, {}) for seed in range(3) for name in VALUES]
    runs = []
    for cell in cells:
        value = VALUES[cell.name][cell.seed]
        iteration = {"rollout/reward": value, "used/samples": 16.0, "used/tokens": 100.0 + cell.seed}
        end = iteration | {
            "used/samples": 32.0,
            "used/tokens": 250.0,
            "val/accuracy": value,
            "val/s/pass@1": value,
            "val/s/pass@2": 2 * value,
        }
        before = {
            "val/accuracy": 0.1,
            "val/s/pass@1": 0.1,
            "val/s/pass@2": 0.15,
            "used/samples": 0.0,
            "used/tokens": 0.0,
        }
        runs.append(FinishedRun(cell, {0: before, 2: iteration, 4: end}, SUMMARY))
    return Study("made up", tuple(cells), "base", (budget, 32), "val/accuracy"), runs


def with_suites() -> tuple[Study, list[FinishedRun]]:
    """Two suites in one table, one of them sampled more often, and one in another."""
    study, runs = made_up()
    study = replace(study, suites={"math": ["a", "b"], "sql": ["c"]})
    runs = [
        replace(
            run,
            suites={
                "a": {"pass@1": value, "pass@4": 2 * value, "n": 4, "diversity/self_bleu_4": 0.5, "categories": {}},
                "b": {"pass@1": value / 2, "n": 1, "categories": {"easy": {"pass@1": value, "questions": 3}}},
                "c": {"greedy": 0.25, "n": 0, "categories": {}},
            },
        )
        for run in runs
        for value in [VALUES[run.cell.name][run.cell.seed]]
    ]
    return study, runs


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    cell = Cell("t", "c", 0, {})
    run = tmp_path / cell.folder
    run.mkdir(parents=True)
    rows = [
        ("step", "rollout/samples", "rollout/tokens", "val/accuracy"),
        (0, "", "", 0.5),
        (2, 16, 40, ""),
        (4, 32, 9, 1),
    ]
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    found = read_cell(cell, tmp_path)
    assert found.rows[0] == {"val/accuracy": 0.5, "used/samples": 0, "used/tokens": 0} and found.summary == SUMMARY
    assert found.rows[2] == {"rollout/samples": 16, "rollout/tokens": 40, "used/samples": 16, "used/tokens": 40}
    assert found.last == {
        "rollout/samples": 32,
        "rollout/tokens": 9,
        "val/accuracy": 1,
        "used/samples": 48,
        "used/tokens": 49,
    }


def test_results_are_hand_computed_values() -> None:
    """Differences 0.1, 0.2, 0.3: see test_compare_significance."""
    found = study_results(*made_up())
    assert (found["metric"], found["budget"], found["seeds"]) == ("val/accuracy", {"steps": 32}, [0, 1, 2])
    task = found["tasks"]["task"]
    assert task["before"] == {"mean": pytest.approx(0.1), "std": 0, "n": 6}
    base, other = task["cells"]["base"], task["cells"]["other"]
    assert (base["mean"], base["std"], base["n"]) == (pytest.approx(0.3), pytest.approx(0.1), 3)
    assert (other["mean"], other["std"], other["n"]) == (pytest.approx(0.5), pytest.approx(0.2), 3)
    assert base["values"] == {"0": 0.2, "1": 0.3, "2": 0.4} and "versus_baseline" not in base
    versus = other["versus_baseline"]
    assert versus["difference"] == {"mean": pytest.approx(0.2), "std": pytest.approx(0.1), "n": 3}
    assert versus["p_t"] == pytest.approx(0.0741799, abs=1e-7) and versus["p_sign_flip"] == versus["p_holm"] == 0.25
    assert versus["improvement"]["value"] == pytest.approx(7.5 / 9), "0.3 ties, 0.3 against 0.4 loses"
    assert other["iqm"]["value"] == pytest.approx(0.5) and base["iqm"]["ci95"] == pytest.approx([0.2, 0.4], abs=0.04)
    assert other["pass_at_k"]["s"]["2"]["mean"] == pytest.approx(1.0)
    assert task["before_pass_at_k"]["s"]["2"]["mean"] == pytest.approx(0.15)
    assert other["used"]["steps"]["mean"] == 4 and other["used"]["samples"]["mean"] == 32
    assert other["seconds_per_step"]["train"]["mean"] == 2 and other["last"]["rollout/reward"]["mean"] == pytest.approx(
        0.5
    )
    json.dumps(found, allow_nan=False)


def test_the_course_of_each_seed_is_in_the_results() -> None:
    study, runs = made_up()
    more = {k: runs[0].rows[4] | {"train/loss": float(k), "rollout/reward": k / 8} for k in range(5, 13)}
    runs[0] = replace(runs[0], rows=runs[0].rows | more, summary=SUMMARY | {"stopped": "collapsed at step 3"})
    cell = study_results(study, runs)["tasks"]["task"]["cells"]["base"]
    alone = cell["by_seed"]["0"]
    assert (alone["quarters"]["train/loss"], cell["collapsed"]) == ([5.5, 7.5, 9.5, 11.5], 1) and alone["collapsed"]
    assert alone["loss_variance"] == cell["loss_variance"]["mean"] == 6.0 and cell["loss_variance"]["n"] == 1
    assert cell["by_seed"]["1"]["loss_variance"] is None and cell["peak_memory_mb"]["mean"] == 100
    assert cell["by_seed"]["1"]["best"] == 0.3 and cell["by_seed"]["1"]["last"]["val/s/pass@2"] == 0.6
    runs[0] = replace(runs[0], rows={step: row | {"val/accuracy": 1 / 3} for step, row in runs[0].rows.items()})
    third = study_results(study, runs)["tasks"]["task"]["cells"]["base"]["by_seed"]["0"]
    assert third["last"]["val/accuracy"] == third["best"] == 1 / 3, "claims are decided on these: nothing is rounded"
    assert quarters([1, 2, 3]) == [] and quarters([1, 2, 3, 4, 5]) == [1, 2, 3, 4.5]


def test_the_papers_tables_have_hand_computed_values() -> None:
    study, runs = with_suites()
    start = {
        "a": {"pass@1": 0.1, "categories": {}},
        "b": {"pass@1": 0.3, "categories": {}},
        "c": {"greedy": 0.0, "categories": {}},
    }
    found = study_results(study, runs, {"task": start})
    texts = suite_tables(study.suites, found["tasks"]["task"])
    tables = {text.partition("\n")[0].removeprefix("### "): text for text in texts}
    assert [*tables] == [
        "math: pass@1",
        "math: pass@4",
        "a: pass@k",
        "b: pass@1 by category",
        "math: self_bleu_4",
        "sql: greedy",
    ]
    lines = tables["math: pass@1"].splitlines()
    assert lines[2:] == [
        "|  | a | b | Avg. |",
        "| --- | ---: | ---: | ---: |",
        "| before training | 10.0 | **30.0** | 20.0 |",
        "| base | 30.0 ± 10.0 | 15.0 ± 5.0 | 22.5 ± 7.5 |",
        "| other | **50.0 ± 20.0** | 25.0 ± 10.0 | **37.5 ± 15.0** |",
    ]
    assert "| base | 60.0 ± 20.0 | 60.0 ± 20.0 |" in tables["math: pass@4"], "one suite has an average too"
    assert "| other | **50.0 ± 20.0** |" in tables["b: pass@1 by category"]
    page = report(study, found, {"task": []}, [])
    assert "### math: pass@1" in page and "| 100 ± 0 | 0 of 3 |" in page
    json.dumps(found, allow_nan=False)


def test_only_seeds_of_both_are_paired() -> None:
    found = against_baseline({"base": {0: 0.1, 1: 0.2, 3: 0.9}, "a": {1: 0.5, 3: 1.0}, "b": {}}, "base")
    assert found["a"]["pairs"] == 2 and found["a"]["difference"]["mean"] == pytest.approx(0.2)
    assert found["a"]["p_sign_flip"] == found["a"]["p_holm"], "the other cannot be tested"
    assert found["b"] == {
        "difference": None,
        "pairs": 0,
        "p_t": None,
        "p_sign_flip": None,
        "improvement": None,
        "p_holm": None,
    }


def test_all_tasks_are_summed_up_together() -> None:
    study, runs = made_up()
    twice = [replace(run, cell=replace(run.cell, task=task)) for task in ("one", "two") for run in runs]
    study = replace(study, cells=tuple(run.cell for run in twice))
    found = study_results(study, twice)["overall"]
    assert found["other"]["iqm"]["value"] == pytest.approx(0.5) and "improvement" not in found["base"]
    assert found["other"]["improvement"]["value"] == pytest.approx(7.5 / 9)
    assert (
        "| other | 0.500 ["
        in report(study, study_results(study, twice), {"one": [], "two": []}, []).split("All tasks")[1]
    )
    assert study_results(*made_up())["overall"] == {}


def test_a_metric_of_an_earlier_step_is_not_taken_for_the_last() -> None:
    study, runs = made_up()
    del runs[0].rows[4]["val/accuracy"]
    assert study_results(study, runs)["tasks"]["task"]["cells"]["base"]["values"] == {"1": 0.3, "2": 0.4}
