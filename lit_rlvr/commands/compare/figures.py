"""The figures of a study: curves with bands over seeds, and pass@k."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lit_rlvr.commands.compare.study import BEFORE, Study
from lit_rlvr.commands.compare.study_results import FinishedRun, pass_at_k_spreads, smoothed
from lit_rlvr.common.packages import import_matplotlib

CURVES = {
    "reward": ("rollout/reward", "Reward of the training rollouts"),
    "accuracy": ("val/accuracy", "Validation accuracy"),
    "entropy": ("rollout/entropy", "Entropy of the sampled tokens (nats)"),
    "correct_count": ("rollout/correct_count", "Correct completions in a rollout"),
    "length": ("rollout/length", "Completion length (tokens)"),
    "zero_advantage": ("train/zero_advantage", "Share of zero advantages"),
    "zero_advantage_base": ("train/zero_advantage_base", "Share of zero advantages without AAPO's margin"),
    "loss": ("train/loss", "Training loss"),
    "unsolved": ("rollout/unsolved_prompts", "Prompts of a rollout without a correct completion"),
    "format": ("reward/format", "Format reward of the training rollouts"),
    "power": ("train/p", "Exponent p"),
    "clip": ("train/eps_ada", "Upper clip eps_ada"),
}
"""File -> metric and title."""

SET_CURVES = {"entropy": "Entropy on {} (nats)", "greedy": "Accuracy of greedy decoding on {}"}
"""Metric of each validation set -> title."""

MOST_IN_LEGEND = 26
"""The most names in a column of a legend."""

RunsByName = Mapping[str, Sequence[FinishedRun]]


def draw_figures(study: Study, runs: Sequence[FinishedRun], folder: Path) -> dict[str, list[Path]]:
    """Draw every figure for which there is data.

    Args:
        study: the study.
        runs: its finished runs.
        folder: receives a subfolder for each task.

    Returns:
        Task -> PNG files, relative to the parent of `folder`.
    """
    drawn: dict[str, list[Path]] = {}
    colours = cell_colours(study.names)
    for task in study.tasks:
        groups: dict[str, list[FinishedRun]] = {}
        for name in study.names:
            runs_of_cell = []
            for run in runs:
                if run.cell.task == task and run.cell.name == name:
                    runs_of_cell.append(run)
            if runs_of_cell:
                groups[name] = runs_of_cell
        curves = dict(CURVES)
        for metric, title in SET_CURVES.items():
            for name in _sets(groups, metric):
                curves[f"{metric}_{name}"] = (f"val/{name}/{metric}", title.format(name))
        figures = {}
        for name in curves:
            figures[name] = _draw_curve(study, groups, colours, *curves[name])
        figures["pass_at_k"] = _draw_pass_at_k(groups, colours)
        drawn[task] = []
        for name, figure in figures.items():
            if figure:
                path = save_figure(figure, folder / task / f"{name}.png")
                drawn[task].append(path.relative_to(folder.parent))
    return drawn


def _sets(groups: RunsByName, metric: str) -> list[str]:
    """Return the validation sets with a metric."""
    names: set[str] = set()
    for runs in groups.values():
        for run in runs:
            names.update(*run.rows.values())
    return sorted(m[1] for name in names if (m := re.fullmatch(rf"val/(.+)/{metric}", name)))


def band(runs: Sequence[FinishedRun], x: str | None, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return mean and sample standard deviation of a metric over runs, along the budget used: (n,) each.

    It smooths each run and interpolates linearly between its points, over the range that all runs cover.

    Args:
        runs: runs of one cell that differ in their seed.
        x: metric for the x axis; None = the step.
        metric: metric for the y axis.
    """
    curves = []
    for run in runs:
        places = []
        for step, row in run.rows.items():
            if metric in row:
                places.append((row[x] if x else step, row[metric]))
        if places:
            curves.append(smoothed(places))
    if not curves:
        return None
    first = max(curve[0][0] for curve in curves)
    last = min(curve[-1][0] for curve in curves)
    grid = np.array(sorted({place for curve in curves for place, _ in curve if first <= place <= last}))
    values = np.array([np.interp(grid, *np.transpose(curve)) for curve in curves])  # (runs, n)
    if len(curves) > 1:
        deviation = values.std(0, ddof=1)
    else:
        deviation = np.zeros(len(grid))
    return grid, values.mean(0), deviation


def _draw_curve(study: Study, groups: RunsByName, colours: Mapping[str, Any], metric: str, title: str) -> Any:
    """Draw one metric along the study's budget; return None if no run has it."""
    unit = study.budget[0]
    along = None if unit == "steps" else f"used/{unit}"
    bands = {}
    for name, runs in groups.items():
        curve = band(runs, along, metric)
        if curve is not None:
            bands[name] = curve
    if not bands:
        return None
    figure, axis = new_figure(
        title, {"steps": "step", "samples": "sampled completions", "tokens": "generated tokens"}[unit]
    )
    for name, curve in bands.items():
        draw_line(axis, name, colours[name], *curve)
    draw_legend(figure, axis)
    return figure


def _draw_pass_at_k(groups: RunsByName, colours: Mapping[str, Any]) -> Any:
    """Draw pass@k after training and before it, with one pair of axes per validation set."""
    after = {}
    for cell, runs in groups.items():
        after[cell] = pass_at_k_spreads([run.last for run in runs])
    before = pass_at_k_spreads([run.rows.get(0, {}) for runs in groups.values() for run in runs])
    names = sorted(set(chain.from_iterable(after.values())))
    if not names:
        return None
    figure, axes = new_figure("", "k", len(names))
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        for cell, spreads in [(BEFORE, before), *after.items()]:
            if name in spreads:
                numbers = []
                for k, value in spreads[name].items():
                    numbers.append((int(k), value["mean"], value["std"] or 0.0))
                draw_line(axis, cell, colours.get(cell, "0.5"), *map(np.array, zip(*numbers, strict=True)))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(f"pass@k, {name}")
    draw_legend(figure, np.atleast_1d(axes)[0])
    return figure


def new_figure(title: str, x: str, count: int = 1) -> tuple[Any, Any]:
    """Return a figure and its pairs of axes, next to one another.

    Args:
        title: title of the figure.
        x: label of the x axes.
        count: number of pairs.
    """
    figure = import_matplotlib().figure.Figure(figsize=(2.2 + 5.2 * count, 4.4), layout="constrained")
    axes = figure.subplots(1, count)
    for axis in np.atleast_1d(axes):
        axis.set_title(title)
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
    return figure, axes


def draw_line(axis: Any, name: str, colour: Any, x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> None:
    """Draw means with their deviations as a band: (n,) each.

    Args:
        axis: the axes to draw on.
        name: the line's name in the legend.
        colour: its colour.
        x: (n,) places on the x axis.
        mean: (n,) means.
        deviation: (n,) standard deviations; the band reaches one to each side.
    """
    axis.plot(x, mean, label=name, color=colour, linewidth=1.6, marker="o" if len(x) <= 20 else None, markersize=3)
    axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.13, linewidth=0)


def draw_legend(figure: Any, axis: Any) -> None:
    """Draw the legend of a pair of axes next to the figure, in more columns if it has many names."""
    handles, labels = axis.get_legend_handles_labels()
    columns = 1 + (len(labels) - 1) // MOST_IN_LEGEND
    figure.set_figwidth(figure.get_figwidth() + 1.5 * (columns - 1))
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, ncols=columns)


def cell_colours(names: Sequence[str]) -> dict[str, Any]:
    """Return the colours of the cells; the baseline, which is first, is black."""
    palette = import_matplotlib().colormaps["tab10" if len(names) <= 11 else "tab20"].colors
    colours = {}
    for i, name in enumerate(names):
        colours[name] = "black" if i == 0 else palette[(i - 1) % len(palette)]
    return colours


def save_figure(figure: Any, path: Path) -> Path:
    """Write a PNG file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
