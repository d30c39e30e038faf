"""The tables: accuracies, time and memory, as means and standard deviations over a group's runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import Any

from lit_rlvr.commands.report.groups import RunGroup
from lit_rlvr.commands.report.runs import MISSING, RunRecord, metric_names

RESULT_COLUMNS = (
    "before", "after", "gain", "runs", "steps", "training (s)", "per iteration (s)", "memory (GiB)", "engine",
)  # fmt: skip


def results_table(groups: Sequence[RunGroup]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return (columns, one row per group) of the gains and costs of training.

    A row has the group's `name`, the `cells`, and its mean accuracies `before` and `after` training (None = not
    measured).
    """
    baseline = next((group for group in groups if group.baseline), None)
    columns = [*RESULT_COLUMNS, *([] if baseline is None else [f"against {baseline.name}"])]
    return columns, [_result(group, baseline) for group in groups]


def _result(group: RunGroup, baseline: RunGroup | None) -> dict[str, Any]:
    before = _known(run.accuracies[0] for run in group.runs)
    after = _known(run.accuracies[1] for run in group.runs)
    gains = []
    for run in group.runs:
        start, end = run.accuracies
        if start is not None and end is not None:
            gains.append(end - start)
    reached = _summary_numbers(group.runs, "steps")
    done = sum(run.is_finished for run in group.runs)
    cells = [
        mean_std(before),
        mean_std(after),
        mean_std(gains, "+.3f"),
        str(done) if done == group.wanted else f"{done} of {group.wanted} finished",
        " to ".join(f"{steps:,.0f}" for steps in sorted({min(reached), max(reached)})) if reached else MISSING,
        mean_std(_summary_numbers(group.runs, "train_seconds"), ",.0f"),
        mean_std(_known(run.seconds_per_iteration for run in group.runs), ",.2f"),
        mean_std(_gibibytes(group.runs), ".2f"),
        ", ".join(sorted({str(run.summary["engine"]) for run in group.runs if "engine" in run.summary})) or MISSING,
    ]
    if baseline is not None:
        reference = _known(run.accuracies[1] for run in baseline.runs)
        if group is not baseline and after and reference:
            cells.append(f"{fmean(after) - fmean(reference):+.3f}")
        else:
            cells.append(MISSING)
    return {
        "name": group.name,
        "cells": cells,
        "before": fmean(before) if before else None,
        "after": fmean(after) if after else None,
    }


RUN_COLUMNS = (
    "seed",
    "state",
    "accuracy before",
    "accuracy after",
    "steps",
    "training (s)",
    "memory (GiB)",
    "weights (SHA-256)",
)


def run_rows(groups: Iterable[RunGroup]) -> list[tuple[str, list[str]]]:
    """Return (folder, cells under `RUN_COLUMNS`) of every run."""
    rows = []
    for group in groups:
        for run in group.runs:
            rows.append((str(run.path), _run_cells(run)))
    return rows


def _run_cells(run: RunRecord) -> list[str]:
    if run.is_finished:
        state = "finished"
    elif run.summary:
        state = "stopped early"
    else:
        state = "unfinished"
    return [
        run.seed,
        state,
        *(mean_std(_known([accuracy])) for accuracy in run.accuracies),
        mean_std(_summary_numbers([run], "steps") or [max(run.metrics, default=0)], ",.0f"),
        mean_std(_summary_numbers([run], "train_seconds"), ",.0f"),
        mean_std(_gibibytes([run]), ".2f"),
        str(run.summary.get("weights_sha256", MISSING))[:12],
    ]


def validation_rows(groups: Sequence[RunGroup]) -> list[tuple[str, list[str]]]:
    """Return (metric, its values before and after training in every group) for everything that validation logged.

    This is, for each set, its accuracy, pass@k, length, share of truncated completions, and the accuracy of each
    category.
    """
    rows = []
    for name in metric_names(chain(*(group.runs for group in groups))):
        if name.startswith("val/") and name.count("/") > 1:
            changes = []
            for group in groups:
                changes.append(_before_after(group.runs, name))
            rows.append((name.removeprefix("val/"), changes))
    return rows


def mean_std(values: Sequence[float], form: str = ".3f") -> str:
    """Return mean and sample standard deviation as text; only the mean for a single value, a dash for none."""
    if not values:
        return MISSING
    mean = format(fmean(values), form)
    if len(values) > 1:
        return f"{mean} \N{PLUS-MINUS SIGN} {format(stdev(values), form.removeprefix('+'))}"
    return mean


def _before_after(runs: Sequence[RunRecord], metric: str) -> str:
    ends = [run.ends(metric) for run in runs]
    first = _known(before for before, _ in ends)
    last = _known(after for _, after in ends)
    form = ".1f" if metric.endswith("/length") else ".3f"
    if first or last:
        return f"{mean_std(first, form)} \N{RIGHTWARDS ARROW} {mean_std(last, form)}"
    return MISSING


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _gibibytes(runs: Iterable[RunRecord]) -> list[float]:
    gibibytes = []
    for megabytes in _summary_numbers(runs, "peak_memory_mb"):
        gibibytes.append(megabytes / 1024)
    return gibibytes


def _summary_numbers(runs: Iterable[RunRecord], name: str) -> list[float]:
    return _known(run.number(name) for run in runs)
