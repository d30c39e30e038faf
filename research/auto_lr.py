"""The regret of `lr: auto`: reads the folder of `compare studies/claims/auto_lr`, prints the table, draws the picture.

A run's value is the mean of its last two validations. The regret of a cell is the mean over seeds of the best fixed
cell of its task and algorithm minus its own value.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from common import print_result, print_table
from matplotlib import pyplot
from scipy.stats import t

FIXED, AUTO = ("1e-4", "3e-4", "1e-3"), ("auto_low", "auto_high")
SHOWN = {"auto_low": "auto from 1e-6", "auto_high": "auto from 1e-3"} | {rate: f"fixed {rate}" for rate in FIXED}
FALL = 0.05
"""The loss of accuracy since the start of a run that counts as a collapse."""

Values = dict[tuple[str, str, str], dict[str, float]]


def read(study: Path) -> tuple[Values, list[str]]:
    """Return (task, algorithm, rate) -> seed -> value, and the runs that collapsed."""
    values, fallen = defaultdict[tuple[str, str, str], dict[str, float]](dict), []
    for run in sorted(study.glob("runs/*/*/seed-*")):
        task, cell, seed = run.parts[-3:]
        algorithm, _, rate = cell.partition("_")
        with (run / "metrics.csv").open(newline="") as file:
            course = [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]]
        values[task, algorithm, rate][seed] = fmean(course[-2:])
        if course[-1] < course[0] - FALL:
            fallen.append("/".join(run.parts[-3:]))
    return dict(values), fallen


def regrets(values: Values) -> Values:
    """Return the regrets in place of the values."""
    best: dict[tuple[str, str], float] = {}
    for (task, algorithm, rate), of_seed in values.items():
        if rate in FIXED:
            best[task, algorithm] = max(best.get((task, algorithm), 0.0), fmean(of_seed.values()))
    return {key: {seed: best[key[:2]] - one for seed, one in of_seed.items()} for key, of_seed in values.items()}


def draw(values: Values, picture: Path) -> None:
    tasks = sorted({task for task, _, _ in values})
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(11, 3.2), layout="constrained")
    for axis, task in zip(axes, tasks, strict=True):
        for algorithm, marker in (("grpo", "o"), ("dapo", "^")):
            for place, rate in enumerate(SHOWN):
                seeds = values[task, algorithm, rate].values()
                colour = "tab:blue" if rate in AUTO else "0.55"
                shift = place + (0.12 if algorithm == "dapo" else -0.12)
                axis.plot([shift] * len(seeds), list(seeds), marker, color=colour, markersize=4)
                axis.hlines(fmean(seeds), shift - 0.1, shift + 0.1, color=colour)
        axis.set(title=task, ylim=(0, None), xticks=range(len(SHOWN)))
        axis.set_xticklabels(SHOWN.values(), rotation=30, ha="right")
    axes[0].set_ylabel("accuracy, last two validations\n(circles GRPO, triangles DAPO)")
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="the folder of the study")
    parser.add_argument("--picture", type=Path, help="where to draw the accuracies")
    options: Any = parser.parse_args()
    values, fallen = read(options.study)
    found = regrets(values)
    print_table(
        ("task", "algorithm", *SHOWN.values()),
        [
            (task, algorithm, *(fmean(values[task, algorithm, rate].values()) for rate in SHOWN))
            for task, algorithm in sorted({key[:2] for key in values})
        ],
    )
    means = {rate: fmean(x for key, of in found.items() if key[2] == rate for x in of.values()) for rate in SHOWN}
    seeds = sorted({seed for of in values.values() for seed in of})
    by_seed = [fmean(of[seed] for key, of in found.items() if key[2] in AUTO) for seed in seeds]
    half = float(t.ppf(0.975, len(seeds) - 1)) * stdev(by_seed) / len(seeds) ** 0.5
    worst = max((fmean(of.values()), "/".join(key)) for key, of in found.items() if key[2] in AUTO)
    if options.picture is not None:
        draw(values, options.picture)
    print_result(
        regret_auto=fmean(by_seed), interval=[fmean(by_seed) - half, fmean(by_seed) + half], regret=means,
        worst=worst, fallen=fallen,
    )  # fmt: skip


if __name__ == "__main__":
    main()
