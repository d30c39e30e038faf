"""Tables and figures of made-up runs, against values computed by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lit_rlvr.commands.compare.figures import draw_figures
from lit_rlvr.commands.compare.study import Cell, Study
from lit_rlvr.commands.compare.study_results import (
    FinishedRun,
    against_baseline,
    at_validations,
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
        iteration = {"rollout/reward": value, "used/samples": 16.0, "used/tokens": 100.0 + cell.seed,
                     "used/seconds": 6.0}  # fmt: skip
        end = iteration | {"used/samples": 32.0, "used/tokens": 250.0, "used/seconds": 20.0 - 2 * cell.seed,
                           "val/accuracy": value, "val/s/pass@1": value, "val/s/pass@2": 2 * value}  # fmt: skip
        before = {
            "val/accuracy": 0.1,
            "val/s/pass@1": 0.1,
            "val/s/pass@2": 0.15,
            "used/samples": 0.0,
            "used/tokens": 0.0,
            "used/seconds": 0.0,
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
        ("step", "rollout/samples", "rollout/tokens", "val/accuracy", "time/rollout", "time/score", "time/train"),
        (0, "", "", 0.5, "", "", ""),
        (2, 16, 40, "", 1, 0.5, 2),
        (4, 32, 9, 1, 0.25, 0.5, 0.5),
    ]
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    found = read_cell(cell, tmp_path)
    used = {key: value for key, value in found.rows[2].items() if key.startswith("used/")}
    assert used == {"used/samples": 16, "used/tokens": 40, "used/seconds": 3}
    assert found.last == {"rollout/samples": 32, "rollout/tokens": 9, "val/accuracy": 1, "time/rollout": 0.25,
                          "time/score": 0.5, "time/train": 0.5, "used/samples": 48, "used/tokens": 49,
                          "used/seconds": 3.75}  # fmt: skip
    assert found.rows[0]["val/accuracy"] == 0.5 and found.rows[0]["used/samples"] == 0 and found.seconds == SECONDS


def test_results_are_hand_computed_values() -> None:
    """Differences 0.1, 0.2, 0.3: see test_compare_significance."""
    found = study_results(*made_up())
    assert found["metric"] == "val/accuracy" and found["budget"] == {"steps": 32} and found["seeds"] == [0, 1, 2]
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
    assert alone["quarters"]["train/loss"] == [5.5, 7.5, 9.5, 11.5] and cell["collapsed"] == 1 and alone["collapsed"]
    assert alone["loss_variance"] == cell["loss_variance"]["mean"] == 6.0 and cell["loss_variance"]["n"] == 1
    assert cell["by_seed"]["1"]["loss_variance"] is None and cell["peak_memory_mb"]["mean"] == 100
    assert cell["by_seed"]["1"]["best"] == 0.3 and cell["by_seed"]["1"]["last"]["val/s/pass@2"] == 0.6
    runs[0] = replace(runs[0], rows={step: row | {"val/accuracy": 1 / 3} for step, row in runs[0].rows.items()})
    third = study_results(study, runs)["tasks"]["task"]["cells"]["base"]["by_seed"]["0"]
    assert third["last"]["val/accuracy"] == third["best"] == 1 / 3, "claims are decided on these: nothing is rounded"
    assert quarters([1, 2, 3]) == [] and quarters([1, 2, 3, 4, 5]) == [1, 2, 3, 4.5]


def test_points_are_means_at_shared_validations_and_at_the_end() -> None:
    """Both validate at 0 and 2; one ends at 4, the other at 3. What only one has at 1 is left out."""
    _, (run, *_) = made_up()
    rows = [{0: (0, 0.1), 1: (5, 0.9), 2: (10, 0.2), 4: (30, 0.5)}, {0: (0, 0.3), 2: (20, 0.6), 3: (50, 0.9)}]
    runs = [replace(run, rows={s: {"x": float(x), "y": y} for s, (x, y) in one.items()}) for one in rows]
    x, mean, deviation = at_validations(
        runs, lambda run: {step: row["x"] for step, row in run.rows.items()}, "y"
    ) or pytest.fail("there are some")
    assert x.tolist() == [0, 15, 40] and mean.tolist() == pytest.approx([0.2, 0.4, 0.7])
    assert deviation.tolist() == pytest.approx([0.02**0.5, 0.08**0.5, 0.08**0.5])
    assert at_validations(runs, lambda run: {}, "y") is None and at_validations(runs, FinishedRun.kl, "y") is None


def test_the_kl_of_a_run_is_a_running_mean_over_five_of_its_iterations() -> None:
    _, (run, *_) = made_up()
    run = replace(run, rows={0: {"val/accuracy": 0.1}, **{step: {"train/kl": float(step)} for step in range(1, 49)}})
    assert run.kl()[0] == 0 and run.kl()[20] == 20 and run.kl()[48] == 47, "mean of 46, 47, 48"
    moving = {"model": {"init_args": {"kl": {"reference_update_every": 3}}}}
    assert replace(run, cell=replace(run.cell, config=moving)).kl() == {}, "not the KL to the starting policy"


def with_rates() -> tuple[Study, list[FinishedRun]]:
    """A family of three rates, one of them the base's, another of two, and a cell that differs in something else."""
    kinds = {"g_low": ("GRPO", 1e-4, {}, 0.2), "g_high": ("GRPO", 4e-4, {}, 0.6), "g": ("GRPO", None, {}, 0.5),
             "d_low": ("DAPO", 1e-4, {}, 0.3), "d_high": ("DAPO", 4e-4, {}, 0.3),
             "d_wide": ("DAPO", 4e-4, {"clip_high": 0.5}, 0.9)}  # fmt: skip
    cells, runs = [], []
    for name, (algorithm, rate, options, value) in kinds.items():
        for seed in range(2):
            init_args = {"model": "m", **({} if rate is None else {"lr": rate}), **options}
            config = {"model": {"class_path": algorithm, "init_args": init_args}, "seed_everything": seed}
            cells.append(Cell("task", name, seed, config, None if algorithm == "GRPO" else 2e-4))
            row = {f"used/{unit}": 1.0 for unit in ("samples", "tokens", "seconds")}
            last = row | {"val/accuracy": value + seed / 10}
            runs.append(FinishedRun(cells[-1], {0: row | {"val/accuracy": 0.1}, 2: last}, SUMMARY))
    return Study("rates", tuple(cells), "g", ("steps", 2), "val/accuracy"), runs


def test_the_best_rate_of_each_family_next_to_the_bases() -> None:
    """GRPO's base has no rate, so it is the default of 1e-6. Of DAPO's equal values the smaller rate is the best."""
    study, runs = with_rates()
    found = study_results(study, runs)
    assert [*found["best_rates"]["task"]] == ["g", "d"]
    g, d = found["best_rates"]["task"].values()
    assert {name: cell["lr"] for name, cell in g["cells"].items()} == {"g": 1e-6, "g_low": 1e-4, "g_high": 4e-4}
    assert g["cells"]["g_high"] == {"lr": 4e-4, "mean": pytest.approx(0.65), "std": pytest.approx(0.005**0.5), "n": 2}
    assert (g["best"], g["best_lr"], g["base"], g["base_lr"]) == ("g_high", 4e-4, "g", 1e-6)
    assert (d["best"], d["best_lr"], d["base"], d["base_lr"]) == ("d_low", 1e-4, None, 2e-4)
    page = report(study, found, {"task": []}, [])
    assert "| val/accuracy by learning rate | 1e-06 | 0.0001 | 0.0004 | best rate |" in page
    assert "| 0.650 ± 0.071 | 0.0004 | 0.650 ± 0.071 | 1e-06 | 0.550 ± 0.071 |" in page and "needs fresh seeds" in page
    assert "| d | - | 0.350 ± 0.071 | 0.350 ± 0.071 | 0.0001 | 0.350 ± 0.071 | 0.0002 | - |" in page
    assert study_results(study, runs[:4])["best_rates"]["task"]["d"]["best"] is None, "none of these ran"
    alone = study_results(*made_up())
    assert alone["best_rates"] == {} and "fresh seeds" not in report(made_up()[0], alone, {"task": []}, [])


def test_the_papers_tables_have_hand_computed_values() -> None:
    study, runs = with_suites()
    start = {"a": {"pass@1": 0.1, "categories": {}}, "b": {"pass@1": 0.3, "categories": {}},
             "c": {"greedy": 0.0, "categories": {}}}  # fmt: skip
    found = study_results(study, runs, {"task": start})
    tables = {table.title: table for table in suite_tables(study.suites, found["tasks"]["task"])}
    assert [*tables] == ["math: pass@1", "math: pass@4", "a: pass@k", "b: pass@1 by category", "math: self_bleu_4",
                         "sql: greedy"]  # fmt: skip
    lines = tables["math: pass@1"].markdown().splitlines()
    assert lines[2:] == [
        "|  | a | b | Avg. |",
        "| --- | ---: | ---: | ---: |",
        "| before training | 10.0 | **30.0** | 20.0 |",
        "| base | 30.0 ± 10.0 | 15.0 ± 5.0 | 22.5 ± 7.5 |",
        "| other | **50.0 ± 20.0** | 25.0 ± 10.0 | **37.5 ± 15.0** |",
    ]
    assert "| base | 60.0 ± 20.0 | 60.0 ± 20.0 |" in tables["math: pass@4"].markdown(), "one suite has an average too"
    assert "| other | **50.0 ± 20.0** |" in tables["b: pass@1 by category"].markdown()
    page = report(study, found, {"task": []}, [])
    assert "### math: pass@1" in page and "| 100 ± 0 | 0 of 3 |" in page
    json.dumps(found, allow_nan=False)


def test_only_seeds_of_both_are_paired() -> None:
    found = against_baseline({"base": {0: 0.1, 1: 0.2, 3: 0.9}, "a": {1: 0.5, 3: 1.0}, "b": {}}, "base")
    assert found["a"]["pairs"] == 2 and found["a"]["difference"]["mean"] == pytest.approx(0.2)
    assert found["a"]["p_sign_flip"] == found["a"]["p_holm"], "the other cannot be tested"
    assert found["b"] == {"difference": None, "pairs": 0, "p_t": None, "p_sign_flip": None, "improvement": None,
                          "p_holm": None}  # fmt: skip


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


def test_figures_that_there_are_numbers_for(tmp_path: Path) -> None:
    """Two tasks: one with rates, KL and entropy of the validation, one whose runs have a single validation."""
    study, runs = made_up()
    two = []
    for run in runs:
        run.rows[2]["train/kl"] = run.rows[4]["train/kl"] = 0.1
        run.rows[0]["val/s/entropy"] = run.rows[4]["val/s/entropy"] = 0.5
        config = {"model": {"init_args": {"lr": 1e-3 if run.cell.name == "base" else 1e-4}}}
        two.append(replace(run, cell=replace(run.cell, task="two", config=config)))
        two.append(replace(run, cell=replace(run.cell, task="one"), rows={4: run.rows[0]}))
    study = replace(study, cells=tuple(run.cell for run in two))
    drawn = draw_figures(study, two, tmp_path / "figures")
    both = ["accuracy", "entropy_s"]
    more = ["reward", *both, "against_kl", "against_tokens", "rates", "pass_at_k", "time_per_step"]
    assert {task: [path.stem for path in paths] for task, paths in drawn.items()} == {
        "two": more, "one": [*both, "pass_at_k", "time_per_step"],
    }  # fmt: skip
    for path in drawn["two"]:
        assert len(set(Image.open(tmp_path / path).convert("RGB").resize((200, 100)).get_flattened_data())) > 20
    for budget in ("samples", "tokens"):
        assert len(draw_figures(replace(study, budget=(budget, 32)), two, tmp_path / budget)["two"]) == len(more)
    assert draw_figures(made_up()[0], [], tmp_path / "none") == {"task": []} and not (tmp_path / "none").exists()
