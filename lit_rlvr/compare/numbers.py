"""Computes the results of a study, over seeds and against the baseline."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lit_rlvr.compare.significance import holm, paired_t_test, sign_flip_test
from lit_rlvr.compare.study import Cell, Study
from lit_rlvr.run.logger import read_metrics

Row = dict[str, float]
USED = ("samples", "tokens")


@dataclass(frozen=True)
class Finished:
    """A finished cell.

    Args:
        rows: its metrics by step, each with `used/samples` and `used/tokens` up to that step.
        seconds: duration of one iteration, by part; `step` is the whole.
    """

    cell: Cell
    rows: dict[int, Row]
    seconds: dict[str, float]

    @property
    def last(self) -> Row:
        return self.rows[max(self.rows)]


def read_run(cell: Cell, root: Path) -> Finished:
    """The metrics and the summary of a cell's run folder."""
    run = root / cell.folder
    rows = dict(sorted(read_metrics(run / "metrics.csv").items()))
    used = dict.fromkeys(USED, 0.0)
    for row in rows.values():
        for name in USED:
            used[name] += row.get(f"rollout/{name}", 0.0)
            row[f"used/{name}"] = used[name]
    return Finished(cell, rows, json.loads((run / "summary.json").read_text())["seconds_per_step"])


def results(study: Study, runs: Sequence[Finished]) -> dict[str, Any]:
    """The content of results.json: by task and cell, over seeds.

    In `{mean, std, n}`, std is the sample standard deviation, null for one value.
    """
    tasks = {task: _task(study, [run for run in runs if run.cell.task == task]) for task in study.tasks}
    unit, count = study.budget
    return {
        "name": study.name,
        "baseline": study.baseline,
        "metric": study.metric,
        "budget": {unit: count},
        "seeds": study.seeds,
        "tasks": tasks,
    }


def _task(study: Study, runs: list[Finished]) -> dict[str, Any]:
    by_name = {name: [run for run in runs if run.cell.name == name] for name in study.names}
    cells = {name: _cell(found, study.metric) for name, found in by_name.items()}
    for name, versus in compared(
        {name: _values(by_name[name], study.metric) for name in cells}, study.baseline
    ).items():
        cells[name]["versus_baseline"] = versus
    before = [run.rows[0] for run in runs if 0 in run.rows]
    return {
        "before": spread([row[study.metric] for row in before if study.metric in row]),
        "before_pass_at_k": pass_at_k(before),
        "cells": cells,
    }


def _cell(runs: Sequence[Finished], metric: str) -> dict[str, Any]:
    values = _values(runs, metric)
    return {
        "values": {str(seed): value for seed, value in values.items()},
        **(spread(list(values.values())) or {"mean": None, "std": None, "n": 0}),
        "pass_at_k": pass_at_k([run.last for run in runs]),
        "used": {
            "steps": spread([float(max(run.rows)) for run in runs]),
            **{unit: spread([run.last[f"used/{unit}"] for run in runs]) for unit in USED},
        },
        "seconds_per_step": _over_seeds([run.seconds for run in runs]),
        "last": _over_seeds([run.last for run in runs]),
    }


def _values(runs: Sequence[Finished], metric: str) -> dict[int, float]:
    """The metric at the last step, by seed; seeds without it are left out."""
    return {run.cell.seed: run.last[metric] for run in runs if metric in run.last}


def compared(values: Mapping[str, Mapping[int, float]], baseline: str) -> dict[str, dict[str, Any]]:
    """Each cell's differences from the baseline, over the seeds that both have, and their p-values.

    Args:
        values: cell -> {seed: value}.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, ours in values.items():
        if name != baseline:
            differences = [
                ours[seed] - values[baseline][seed] for seed in sorted(ours.keys() & values[baseline].keys())
            ]
            tests = {"p_t": paired_t_test(differences), "p_sign_flip": sign_flip_test(differences)}
            found[name] = {"difference": spread(differences), "pairs": len(differences), **tests}
    tested = [name for name, versus in found.items() if versus["p_t"] is not None]
    adjusted = holm([found[name]["p_t"] for name in tested])
    for name in found:
        found[name]["p_holm"] = None
    for name, p in zip(tested, adjusted, strict=True):
        found[name]["p_holm"] = p
    return found


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, sample standard deviation and number of some values; None without any."""
    if not values:
        return None
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "n": len(values)}


def pass_at_k(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Validation set -> {k: spread of pass@k}."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            match = re.fullmatch(r"val/(.+)/pass@(\d+)", name)
            if match:
                found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(value)
    return {name: {str(k): spread(values) for k, values in sorted(at.items())} for name, at in sorted(found.items())}


def _over_seeds(rows: Sequence[Row]) -> dict[str, Any]:
    names = sorted({name for row in rows for name in row})
    return {name: spread([row[name] for row in rows if name in row]) for name in names}
