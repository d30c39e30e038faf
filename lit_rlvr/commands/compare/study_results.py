"""Computes the results of a study, over seeds and against the baseline."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import fmean, mean, stdev, variance
from typing import Any

from lit_rlvr.commands.compare.significance import (
    holm,
    interquartile_mean,
    paired_t_test,
    probability_of_improvement,
    sign_flip_test,
    stratified_band,
)
from lit_rlvr.commands.compare.study import Cell, Study
from lit_rlvr.commands.compare.study_folder import EVALUATION, read_suites
from lit_rlvr.common.run_files import read_metrics
from lit_rlvr.evaluation.results import averages

MetricRow = dict[str, float]
USED = ("samples", "tokens")
"""What training uses; `rollout/samples` and `rollout/tokens` add up to it over the iterations."""
QUARTER_METRICS = (
    "rollout/reward", "rollout/accuracy", "rollout/entropy", "rollout/correct_count", "rollout/unsolved_prompts",
    "rollout/length", "reward/format", "train/zero_advantage", "train/zero_advantage_base", "train/no_signal",
    "train/margin", "train/omega", "train/p", "train/eps_ada", "train/clip_low", "train/clip_high", "train/loss",
    "train/grad_norm",
)  # fmt: skip
"""Metrics of training whose means over each quarter of the run are in results.json."""
ACCURACY = "val/accuracy"


@dataclass(frozen=True)
class FinishedRun:
    """A finished cell.

    Args:
        cell: the cell that the run belongs to.
        rows: its metrics by step, each with `used/samples` and `used/tokens` up to that step.
        summary: its summary.json.
        suites: suite -> results, of the model's evaluation; empty if the study has no suites.
    """

    cell: Cell
    rows: dict[int, MetricRow]
    summary: Mapping[str, Any]
    suites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_collapsed(self) -> bool:
        """True if the run ended because its policy had collapsed."""
        return str(self.summary.get("stopped") or "").startswith("collapse")

    def history(self, metric: str) -> list[float]:
        """Return the values of a metric in the training iterations, in order."""
        values = []
        for row in self.rows.values():
            if metric in row:
                values.append(row[metric])
        return values

    @property
    def last(self) -> MetricRow:
        """The metrics of the last step."""
        return self.rows[max(self.rows)]


def read_cell(cell: Cell, root: Path) -> FinishedRun:
    """Read the metrics and the summary of a cell's run folder."""
    run_folder = root / cell.folder
    rows = dict(sorted(read_metrics(run_folder / "metrics.csv").items()))
    used = dict.fromkeys(USED, 0.0)
    for row in rows.values():
        for unit in USED:
            used[unit] += row.get(f"rollout/{unit}", 0.0)
            row[f"used/{unit}"] = used[unit]
    summary = json.loads((run_folder / "summary.json").read_text())
    return FinishedRun(cell, rows, summary, read_suites(run_folder / EVALUATION))


def smoothed(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return running means over a twelfth of the points; curves of fewer than 24 points stay unchanged."""
    half = len(curve) // 24
    means = []
    for i, (x, _) in enumerate(curve):
        window = curve[max(0, i - half) : i + half + 1]
        means.append((x, fmean(value for _, value in window)))
    return means


def study_results(
    study: Study,
    runs: Sequence[FinishedRun],
    starts: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Return the content of results.json: by task and cell, over seeds.

    In `{mean, std, n}`, std is the sample standard deviation, null for one value.

    Args:
        study: the study.
        runs: its finished runs.
        starts: task -> suite -> results of the model that training starts from.
    """
    tasks = {}
    for task in study.tasks:
        tasks[task] = _task(study, [run for run in runs if run.cell.task == task])
    overall = _overall(study, runs) if len(study.tasks) > 1 else {}
    for task, suites in (starts or {}).items():
        tasks[task]["before_suites"] = _tables(study, [suites])
    unit, count = study.budget
    return {
        "name": study.name,
        "baseline": study.baseline,
        "metric": study.metric,
        "budget": {unit: count},
        "seeds": study.seeds,
        "tasks": tasks,
        "overall": overall,
    }


def _overall(study: Study, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return each cell's interquartile mean and probability of improvement over all tasks.

    The improvement is over the baseline.
    """
    by_cell: dict[str, list[dict[int, float]]] = {}
    for name in study.names:
        runs_of_cell = []
        for run in runs:
            if run.cell.name == name:
                runs_of_cell.append(run)
        by_cell[name] = []
        for task in study.tasks:
            of_task = []
            for run in runs_of_cell:
                if run.cell.task == task:
                    of_task.append(run)
            by_cell[name].append(_values(of_task, study.metric))
    overall = {}
    for name, tasks in by_cell.items():
        overall[name] = {"iqm": with_interval(interquartile_mean, tasks)}
        if name != study.baseline:
            baseline = by_cell[study.baseline]
            overall[name]["improvement"] = with_interval(probability_of_improvement, tasks, baseline)
    return overall


def _task(study: Study, runs: list[FinishedRun]) -> dict[str, Any]:
    cells = {}
    values = {}
    for name in study.names:
        runs_of_cell = []
        for run in runs:
            if run.cell.name == name:
                runs_of_cell.append(run)
        cells[name] = _cell_results(study, runs_of_cell)
        values[name] = _values(runs_of_cell, study.metric)
    for name, versus in against_baseline(values, study.baseline).items():
        cells[name]["versus_baseline"] = versus
    before = []
    for run in runs:
        if 0 in run.rows:
            before.append(run.rows[0])
    return {
        "before": spread([row[study.metric] for row in before if study.metric in row]),
        "before_pass_at_k": pass_at_k_spreads(before),
        "cells": cells,
    }


def _cell_results(study: Study, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    values = _values(runs, study.metric)
    used = {"steps": spread([float(max(run.rows)) for run in runs])}
    for unit in USED:
        used[unit] = spread([run.last[f"used/{unit}"] for run in runs])
    losses = [run.history("train/loss") for run in runs]
    variances = []
    for history in losses:
        if len(history) > 1:
            variances.append(variance(history))
    return {
        "values": {str(seed): value for seed, value in values.items()},
        **(spread(list(values.values())) or {"mean": None, "std": None, "n": 0}),
        "iqm": with_interval(interquartile_mean, [values]),
        "pass_at_k": pass_at_k_spreads([run.last for run in runs]),
        "used": used,
        "seconds_per_step": _over_seeds([run.summary["seconds_per_step"] for run in runs]),
        "peak_memory_mb": spread([float(run.summary["peak_memory_mb"]) for run in runs]),
        "collapsed": sum(run.is_collapsed for run in runs),
        "loss_variance": spread(variances),
        "last": _over_seeds([run.last for run in runs]),
        "suites": _tables(study, [run.suites for run in runs if run.suites]),
        "by_seed": {str(run.cell.seed): _one_run(run) for run in runs},
    }


def _one_run(run: FinishedRun) -> dict[str, Any]:
    """Return one run's numbers for users' own analyses: its last validation, and its metrics by quarter."""
    quarters_by_metric = {}
    for name in QUARTER_METRICS:
        quarters_by_metric[name] = quarters(run.history(name))
    losses = run.history("train/loss")
    accuracies = []
    for row in run.rows.values():
        if ACCURACY in row:
            accuracies.append(row[ACCURACY])
    suites = {}
    for suite, results in run.suites.items():
        suites[suite] = {name: finite(value) for name, value in _flat_numbers(results).items()}
    last = {}
    for name, value in run.last.items():
        if name.startswith("val/"):
            last[name] = finite(value)
    return {
        "last": last,
        "quarters": {name: values for name, values in quarters_by_metric.items() if values},
        "loss_variance": finite(variance(losses)) if len(losses) > 1 else None,
        "best": finite(max(accuracies, default=math.nan)),
        "collapsed": run.is_collapsed,
        "train_seconds": run.summary.get("train_seconds"),
        "suites": suites,
    }


def quarters(history: Sequence[float]) -> list[float | None]:
    """Return the means over each quarter of at least four values."""
    n = len(history)
    means: list[float | None] = []
    if n >= 4:
        for k in range(4):
            means.append(finite(mean(history[n * k // 4 : n * (k + 1) // 4])))
    return means


def finite(value: float) -> float | None:
    """Return a number as JSON holds it: None for NaN and infinity."""
    if math.isfinite(value):
        return float(value)
    return None


def _tables(study: Study, suites_by_seed: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the study's tables of suites: table -> results of each suite and of their average, over seeds.

    Args:
        study: the study.
        suites_by_seed: suite -> results for each seed, in the study's order.
    """
    tables: dict[str, Any] = {}
    names = iter(suites_by_seed[0] if suites_by_seed else ())
    for table, suites_of_table in study.suites.items():
        group = list(islice(names, len(suites_of_table)))
        of_suites = {}
        for name in group:
            results = [suites[name] for suites in suites_by_seed]
            of_suites[name] = _over_seeds([_flat_numbers(of_seed) for of_seed in results])
            categories = []
            for of_seed in results:
                categories.append(of_seed["categories"])
            of_suites[name]["categories"] = _over_seeds(categories, _over_seeds)
        averages_by_seed = []
        for suites in suites_by_seed:
            numbers = []
            for name in group:
                numbers.append(_flat_numbers(suites[name]))
            averages_by_seed.append(averages(numbers, dict.fromkeys(chain(*numbers))))
        tables[table] = {"suites": of_suites, "average": _over_seeds(averages_by_seed)}
    return tables


def _flat_numbers(results: Mapping[str, Any]) -> MetricRow:
    numbers = {}
    for key, value in results.items():
        if isinstance(value, float):
            numbers[key] = value
    return numbers


def _values(runs: Sequence[FinishedRun], metric: str) -> dict[int, float]:
    """Return the metric at the last step by seed, without seeds that lack it."""
    values = {}
    for run in runs:
        if metric in run.last:
            values[run.cell.seed] = run.last[metric]
    return values


def against_baseline(values: Mapping[str, Mapping[int, float]], baseline: str) -> dict[str, dict[str, Any]]:
    """Return each cell's differences from the baseline over the seeds that both have, and their p-values.

    Args:
        values: cell -> {seed: value}.
        baseline: name of the cell to compare the others with.
    """
    versus_baseline: dict[str, dict[str, Any]] = {}
    for name, scores in values.items():
        if name != baseline:
            differences = []
            for seed in sorted(scores.keys() & values[baseline].keys()):
                differences.append(scores[seed] - values[baseline][seed])
            versus_baseline[name] = {
                "difference": spread(differences),
                "pairs": len(differences),
                "p_t": paired_t_test(differences),
                "p_sign_flip": sign_flip_test(differences),
                "improvement": with_interval(probability_of_improvement, [scores], [values[baseline]]),
            }
    tested = {}
    for name, versus in versus_baseline.items():
        if versus["p_sign_flip"] is not None:
            tested[name] = versus["p_sign_flip"]
    adjusted = dict(zip(tested, holm([*tested.values()]), strict=True))
    return {name: versus | {"p_holm": adjusted.get(name)} for name, versus in versus_baseline.items()}


def with_interval(statistic: Callable[..., Any], *scores: Sequence[Mapping[int, float]]) -> dict[str, Any] | None:
    """Return a statistic of runs with its stratified bootstrap interval; None without runs.

    Args:
        statistic: a function of `significance.py`.
        scores: its arguments: seed -> value for each task.
    """
    runs = []
    for tasks in scores:
        runs.append([list(task.values()) for task in tasks])
    if not all(map(all, scores)):
        return None
    interval = stratified_band(statistic, *runs)
    return {"value": float(statistic(*runs)), "ci95": None if interval is None else interval.tolist()}


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Return mean, sample standard deviation and number of some values; None without any."""
    if not values:
        return None
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "n": len(values)}


def pass_at_k_spreads(rows: Sequence[MetricRow]) -> dict[str, dict[str, Any]]:
    """Return validation set -> {k: spread of pass@k}."""
    by_set: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            match = re.fullmatch(r"val/(.+)/pass@(\d+)", name)
            if match:
                by_set.setdefault(match[1], {}).setdefault(int(match[2]), []).append(value)
    spreads = {}
    for name, by_k in sorted(by_set.items()):
        spreads[name] = {str(k): spread(values) for k, values in sorted(by_k.items())}
    return spreads


def _over_seeds(rows: Sequence[Mapping[str, Any]], summary: Callable[[list[Any]], Any] = spread) -> dict[str, Any]:
    """Return name -> the summary of its values in some rows."""
    summaries = {}
    for name in sorted(set(chain(*rows))):
        values = []
        for row in rows:
            if name in row:
                values.append(row[name])
        summaries[name] = summary(values)
    return summaries
