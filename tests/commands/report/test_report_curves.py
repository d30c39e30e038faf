"""Curves: means and bands over runs, by hand and by a slow loop."""

import random
from pathlib import Path

import pytest

from lit_rlvr.commands.report.charts import MAX_POINTS, Curve, curve, more_panels, panels, thin
from lit_rlvr.commands.report.groups import RunGroup
from lit_rlvr.commands.report.runs import RunRecord


def run(metrics: dict[int, dict[str, float]]) -> RunRecord:
    return RunRecord(Path("run"), metrics=metrics)


def test_mean_and_band_over_the_runs_that_reached_a_step() -> None:
    runs = [
        run({2: {"a": 1.0}, 4: {"a": 5.0}}),
        run({4: {"a": 1.0}, 2: {"a": 3.0}, 6: {"a": 9.0}}),
        run({2: {"b": 0.0}}),
    ]
    assert curve(runs, ("a",)) == Curve([2, 4, 6], [2.0, 3.0, 9.0], [1.0, 1.0, 9.0], [3.0, 5.0, 9.0])
    assert curve(runs, ("c",)) is None and curve([], ("a",)) is None


def test_metrics_are_summed_where_all_are_there() -> None:
    assert curve([run({1: {"a": 1.0}, 2: {"a": 1.0, "b": 2.5}})], ("a", "b")) == Curve([2], [3.5], [3.5], [3.5])


@pytest.mark.parametrize("length", [1, MAX_POINTS, MAX_POINTS + 1, 5 * MAX_POINTS - 3])
def test_long_curves_are_thinned(length: int) -> None:
    draw = random.Random(length)
    mean = [draw.random() for _ in range(length)]
    long = Curve(list(range(length)), mean, [m - draw.random() for m in mean], [m + draw.random() for m in mean])
    short = thin(long)
    assert len(short.steps) <= MAX_POINTS and short.steps[-1] == length - 1
    start = 0
    for k, step in enumerate(short.steps):
        members = range(start, step + 1)
        assert short.mean[k] == pytest.approx(sum(mean[i] for i in members) / len(members))
        assert short.low[k] == min(long.low[i] for i in members) and short.high[k] == max(long.high[i] for i in members)
        start = step + 1
    assert thin(short) == short


def test_panels_show_what_was_logged() -> None:
    values = {
        "rollout/reward": 1.0, "val/accuracy": 0.5, "val/a/accuracy": 0.5, "val/a/accuracy/easy": 0.9,
        "val/a/pass@1": 0.5, "val/a/pass@2": 0.6, "val/a/pass@16": 0.9, "train/grad_norm": 1.0, "time/train": 1.0,
        "epoch": 0.0,
    }  # fmt: skip
    groups = [RunGroup("a", runs=[run({1: values})]), RunGroup("b", runs=[run({1: {"rollout/reward": 2.0}})])]
    found = panels(groups)
    assert [title for title, _ in found] == ["Training reward", "Validation accuracy", "pass@2 on a", "pass@16 on a"]
    assert [curves[1] is None for _, curves in found] == [False, True, True, True]
    assert [title for title, _ in more_panels(groups)] == ["train/grad_norm"]
