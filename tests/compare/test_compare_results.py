"""Tables and figures of made-up runs, against values computed by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_rlvr.compare.figures import band, draw_figures, smoothed
from lit_rlvr.compare.folder import State
from lit_rlvr.compare.numbers import Finished, compared, read_run, results
from lit_rlvr.compare.study import Cell, Study
from lit_rlvr.compare.tables import plus_minus, report

VALUES = {"base": [0.2, 0.3, 0.4], "other": [0.3, 0.5, 0.7]}
SECONDS = {"sync": 0.0, "generate": 1.0, "score": 0.5, "train": 2.0, "step": 4.0}


def made_up(budget: str = "steps") -> tuple[Study, list[Finished]]:
    """Two algorithms over three seeds, each with a validation before and two iterations."""
    cells = [Cell("task", name, seed, {}) for seed in range(3) for name in VALUES]
    runs = []
    for cell in cells:
        value = VALUES[cell.name][cell.seed]
        iteration = {"rollout/reward": value, "used/samples": 16.0, "used/tokens": 100.0 + cell.seed}
        end = iteration | {"used/samples": 32.0, "used/tokens": 250.0, "val/accuracy": value, "val/s/pass@1": value,
                           "val/s/pass@2": 2 * value}  # fmt: skip
        before = {
            "val/accuracy": 0.1,
            "val/s/pass@1": 0.1,
            "val/s/pass@2": 0.15,
            "used/samples": 0.0,
            "used/tokens": 0.0,
        }
        runs.append(Finished(cell, {0: before, 2: iteration, 4: end}, SECONDS))
    return Study("made up", tuple(cells), "base", (budget, 32), "val/accuracy"), runs


def test_what_is_read_from_a_run_folder(tmp_path: Path) -> None:
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
    (run / "summary.json").write_text(json.dumps({"seconds_per_step": SECONDS}))
    found = read_run(cell, tmp_path)
    assert found.rows[2] == {"rollout/samples": 16, "rollout/tokens": 40, "used/samples": 16, "used/tokens": 40}
    assert found.last == {"rollout/samples": 32, "rollout/tokens": 9, "val/accuracy": 1, "used/samples": 48,
                          "used/tokens": 49}  # fmt: skip
    assert found.rows[0]["val/accuracy"] == 0.5 and found.rows[0]["used/samples"] == 0 and found.seconds == SECONDS


def test_results_by_hand() -> None:
    """Differences 0.1, 0.2, 0.3: see test_compare_significance."""
    found = results(*made_up())
    assert found["metric"] == "val/accuracy" and found["budget"] == {"steps": 32} and found["seeds"] == [0, 1, 2]
    task = found["tasks"]["task"]
    assert task["before"] == {"mean": pytest.approx(0.1), "std": 0, "n": 6}
    base, other = task["cells"]["base"], task["cells"]["other"]
    assert (base["mean"], base["std"], base["n"]) == (pytest.approx(0.3), pytest.approx(0.1), 3)
    assert (other["mean"], other["std"], other["n"]) == (pytest.approx(0.5), pytest.approx(0.2), 3)
    assert base["values"] == {"0": 0.2, "1": 0.3, "2": 0.4} and "versus_baseline" not in base
    versus = other["versus_baseline"]
    assert versus["difference"] == {"mean": pytest.approx(0.2), "std": pytest.approx(0.1), "n": 3}
    assert versus["p_t"] == versus["p_holm"] == pytest.approx(0.0741799, abs=1e-7) and versus["p_sign_flip"] == 0.25
    assert other["pass_at_k"]["s"]["2"]["mean"] == pytest.approx(1.0)
    assert task["before_pass_at_k"]["s"]["2"]["mean"] == pytest.approx(0.15)
    assert other["used"]["steps"]["mean"] == 4 and other["used"]["samples"]["mean"] == 32
    assert other["seconds_per_step"]["train"]["mean"] == 2 and other["last"]["rollout/reward"]["mean"] == pytest.approx(
        0.5
    )
    json.dumps(found, allow_nan=False)


def test_only_seeds_of_both_are_paired() -> None:
    found = compared({"base": {0: 0.1, 1: 0.2, 3: 0.9}, "a": {1: 0.5, 3: 1.0}, "b": {}}, "base")
    assert found["a"]["pairs"] == 2 and found["a"]["difference"]["mean"] == pytest.approx(0.2)
    assert found["a"]["p_t"] == found["a"]["p_holm"], "the other cannot be tested"
    assert found["b"] == {"difference": None, "pairs": 0, "p_t": None, "p_sign_flip": None, "p_holm": None}


def test_a_metric_of_an_earlier_step_is_not_taken_for_the_last() -> None:
    study, runs = made_up()
    del runs[0].rows[4]["val/accuracy"]
    assert results(study, runs)["tasks"]["task"]["cells"]["base"]["values"] == {"1": 0.3, "2": 0.4}


def test_the_page() -> None:
    study, runs = made_up()
    failed = State(Cell("task", "third", 0, {}), "failed", "it | broke")
    page = report(study, results(study, runs), {"task": [Path("figures/task/reward.png")]}, [failed])
    assert "| before training |  | 0.100 ± 0.000 |  |  |  |  |" in page
    assert "| base | 3 | 0.300 ± 0.100 |  |  |  |  |" in page
    assert "| other | 3 | 0.500 ± 0.200 | 0.200 ± 0.100 | 0.074 | 0.074 | 0.250 |" in page
    assert "With 3 seeds the sign-flip test cannot go below 0.25" in page
    assert "| pass@k, s | 1 | 2 |" in page and "| other | 0.500 ± 0.200 | 1.000 ± 0.400 |" in page
    assert "![reward](figures/task/reward.png)" in page and "| task, third, seed 0 | it \\| broke |" in page
    assert plus_minus({"mean": 0.5, "std": None, "n": 1}) == "0.500" and plus_minus(None) == "-"


def test_bands_are_interpolated_where_all_runs_are() -> None:
    """Points (100, 0.2) and (250, 0.2), (101, 0.3) ...: from 102 to 250, where the middle one is the mean."""
    _, runs = made_up()
    grid, mean, deviation = band(runs[::2], None, "rollout/reward") or pytest.fail("there is one")
    assert grid.tolist() == [2, 4] and mean.tolist() == pytest.approx([0.3, 0.3])
    assert deviation.tolist() == pytest.approx([0.1, 0.1])
    grid, mean, _ = band(runs[::2], "used/tokens", "val/accuracy") or pytest.fail("there is one")
    assert grid.tolist() == [0, 250] and mean.tolist() == pytest.approx([0.1, 0.3])
    grid, _, _ = band(runs[::2], "used/tokens", "rollout/reward") or pytest.fail("there is one")
    assert grid.tolist() == [102, 250]
    assert band(runs, None, "no such metric") is None
    assert (band(runs[:1], None, "rollout/reward") or pytest.fail("there is one"))[2].tolist() == [0, 0]


def test_long_curves_are_smoothed() -> None:
    """48 points: over five of them, at the ends over those that are there."""
    few = [(float(i), float(i % 2)) for i in range(23)]
    assert smoothed(few) == few
    curve = [(2.0 * i, float(i**2)) for i in range(48)]
    found = smoothed(curve)
    assert [x for x, _ in found] == [x for x, _ in curve]
    assert found[10][1] == pytest.approx((64 + 81 + 100 + 121 + 144) / 5)
    assert found[0][1] == pytest.approx((0 + 1 + 4) / 3) and found[47][1] == pytest.approx((45**2 + 46**2 + 47**2) / 3)


@pytest.mark.parametrize("budget", ["steps", "samples", "tokens"])
def test_figures_that_there_are_numbers_for(tmp_path: Path, budget: str) -> None:
    study, runs = made_up(budget)
    drawn = draw_figures(study, runs, tmp_path / "figures")
    names = [path.stem for path in drawn["task"]]
    assert names == ["reward", "accuracy", "pass_at_k", "time_per_step"], "these runs have no entropy"
    for path in drawn["task"]:
        assert len(set(Image.open(tmp_path / path).convert("RGB").resize((200, 100)).get_flattened_data())) > 20
    empty: Any = draw_figures(study, [], tmp_path / "none")
    assert empty == {"task": []} and not (tmp_path / "none").exists()
