"""The figures of a study: curves with bands over seeds, pass@k, time, profiles, and each advantage's signal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_rlvr.commands.compare.axes import (
    cell_colours,
    draw_legend,
    draw_line,
    figure_of_cells,
    new_figure,
    save_figure,
)
from lit_rlvr.commands.compare.learning_rates import families
from lit_rlvr.commands.compare.significance import performance_profile, stratified_band
from lit_rlvr.commands.compare.study import ALL_TASKS, BEFORE, Study
from lit_rlvr.commands.compare.study_results import (
    FinishedRun,
    at_validations,
    by_difficulty,
    pass_at_k_spreads,
    quarters,
    scores_by_task,
    smoothed,
    spread,
)

if TYPE_CHECKING:
    from lit_rlvr.advantages import Advantage


def signal(advantage: Advantage, size: int) -> list[float]:
    """Return sum |A| of groups with 0, 1, ..., `size` correct completions, with rewards 0 and 1.

    Each group is a batch of its own, so that the batch's proficiency is the group's. All completions are equally long;
    reference completions alternate between right and wrong.
    """
    import torch

    from lit_rlvr.advantages import GroupBatch

    sums = []
    for correct in range(size + 1):
        rewards = (torch.arange(size) < correct).double()[None]  # (1, G)
        reference = (torch.arange(size) % 2 == 0).double()[None]
        group = GroupBatch(rewards, rewards, reference, torch.full_like(rewards, 100.0))
        sums.append(float(advantage(group).abs().sum()))
    return sums


def draw_signal(path: Path) -> None:
    """Draw every registered advantage with its default options as a PNG file."""
    import matplotlib

    from lit_rlvr.advantages import REGISTRY

    size = 16
    figure, axis = new_figure(f"Sum |A| of a group of {size}", "share of correct completions, p")
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    shares = [correct / size for correct in range(size + 1)]
    for k, (name, cls) in enumerate(sorted(REGISTRY.items())):
        axis.plot(shares, signal(cls(), size), label=name, color=colours[k % 20], marker="o", markersize=2)
    axis.set_yscale("symlog", linthresh=1.0)
    draw_legend(figure, axis)
    save_figure(figure, path)


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

AGAINST: dict[str, tuple[Callable[[FinishedRun], Mapping[int, float]], str]] = {
    "against_entropy": (FinishedRun.entropy, "entropy of the completions (nats per token)"),
    "against_kl": (FinishedRun.kl, "KL to the starting policy (nats per token)"),
    "against_tokens": (partial(FinishedRun.used, unit="tokens"), "generated tokens"),
    "against_seconds": (partial(FinishedRun.used, unit="seconds"), "seconds of rollouts and updates"),
}
"""File -> what the compared metric is drawn against at each validation, and its label."""

TIME_PARTS = ("generate", "score", "train")
"""Parts of an iteration's time; a reference model's rollouts and the weight sync make up the rest."""

RunsByName = Mapping[str, Sequence[FinishedRun]]


def draw_figures(study: Study, runs: Sequence[FinishedRun], folder: Path) -> dict[str, list[Path]]:
    """Draw every figure for which there is data.

    Args:
        folder: receives a subfolder for each task.

    Returns:
        Task -> PNG files, relative to the parent of `folder`; of several tasks, `ALL_TASKS` too.
    """
    drawn: dict[str, list[Path]] = {}
    colours = cell_colours(study.names)
    for task in study.tasks:
        groups = {name: [r for r in runs if (r.cell.task, r.cell.name) == (task, name)] for name in study.names}
        groups = {name: found for name, found in groups.items() if found}
        before = by_difficulty([run for found in groups.values() for run in found], at_end=False)
        curves = CURVES | {
            f"{metric}_{name}": (f"val/{name}/{metric}", title.format(name))
            for metric, title in SET_CURVES.items()
            for name in _sets(groups, metric)
        }
        figures = {name: _draw_curve(study, groups, colours, *curves[name]) for name in curves} | {
            **{name: _draw_against(study, groups, colours, *AGAINST[name]) for name in AGAINST},
            "profile": _draw_profile(study, runs, [task], colours),
            "rates": _draw_rates(study, task, groups),
            **{f"difficulty_{name}": _draw_difficulty(groups, colours, name, before[name]) for name in before},
            "pass_at_k": _draw_pass_at_k(groups, colours),
            "final": _draw_final(study, groups),
            "zero_advantage_ends": _draw_ends(groups),
            "time_per_step": _draw_seconds(groups),
        }
        drawn[task] = [save_figure(figure, folder / task / f"{name}.png") for name, figure in figures.items() if figure]
    if len(study.tasks) > 1 and (figure := _draw_profile(study, runs, study.tasks, colours)):
        drawn[ALL_TASKS] = [save_figure(figure, folder / "profile.png")]
    return {task: [path.relative_to(folder.parent) for path in paths] for task, paths in drawn.items()}


def _sets(groups: RunsByName, metric: str) -> list[str]:
    """Return the validation sets with a metric."""
    names = {name for runs in groups.values() for run in runs for row in run.rows.values() for name in row}
    return sorted(m[1] for name in names if (m := re.fullmatch(rf"val/(.+)/{metric}", name)))


def band(runs: Sequence[FinishedRun], x: str | None, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return mean and sample standard deviation of a metric over runs, along the budget used: (n,) each.

    It smooths each run and interpolates linearly between its points, over the range that all runs cover.

    Args:
        x: metric for the x axis; None = the step.
    """
    curves = [[(row[x] if x else step, row[metric]) for step, row in r.rows.items() if metric in row] for r in runs]
    curves = [smoothed(curve) for curve in curves if curve]
    if not curves:
        return None
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    grid = np.array(sorted({place for curve in curves for place, _ in curve if first <= place <= last}))
    values = np.array([np.interp(grid, [p for p, _ in c], [v for _, v in c]) for c in curves])  # (runs, n)
    deviation = values.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(grid))
    return grid, values.mean(0), deviation


def _draw_curve(study: Study, groups: RunsByName, colours: Mapping[str, Any], metric: str, title: str) -> Any:
    """Draw one metric along the study's budget; return None if no run has it."""
    unit = study.budget[0]
    along = None if unit == "steps" else f"used/{unit}"
    bands = {name: found for name, runs in groups.items() if (found := band(runs, along, metric)) is not None}
    if not bands:
        return None
    figure, axis = new_figure(
        title, {"steps": "step", "samples": "sampled completions", "tokens": "generated tokens"}[unit]
    )
    for name, found in bands.items():
        draw_line(axis, name, colours[name], *found)
    draw_legend(figure, axis)
    return figure


def _draw_against(
    study: Study,
    groups: RunsByName,
    colours: Mapping[str, Any],
    along: Callable[[FinishedRun], Mapping[int, float]],
    label: str,
) -> Any:
    """Draw the compared metric against a quantity, with a point per validation, the last one large.

    Returns:
        None if no cell has two points.
    """
    points = {
        name: found for name, runs in groups.items() if (found := at_validations(runs, along, study.metric)) is not None
    }
    if not any(len(x) > 1 for x, _, _ in points.values()):
        return None

    def draw(axis: Any, name: str) -> None:
        x, mean, deviation = points[name]
        grows = bool((np.diff(x) > 0).all())  # otherwise a band would overlap itself
        draw_line(axis, name, colours[name], x, mean, deviation if grows else np.zeros(len(x)))
        axis.plot(x[-1], mean[-1], color=colours[name], marker="o", markersize=5)

    return figure_of_cells(list(points), draw, f"{study.metric} after each validation", label)


def _draw_profile(study: Study, runs: Sequence[FinishedRun], tasks: Sequence[str], colours: Mapping[str, Any]) -> Any:
    """Draw the share of runs above each value of the compared metric, over some tasks, with its bootstrap interval.

    It has the cells with runs of all tasks; return None if each has a single run.
    """
    scores = {
        name: [list(values.values()) for values in by_task]
        for name, by_task in scores_by_task(study, runs, tasks).items()
        if all(by_task)
    }
    if max((sum(map(len, by_task)) for by_task in scores.values()), default=0) < 2:
        return None
    values = [value for by_task in scores.values() for task in by_task for value in task]
    margin = max(0.05 * (max(values) - min(values)), 0.01)
    thresholds = np.linspace(min(values) - margin, max(values) + margin, 101)
    profile = partial(performance_profile, thresholds=thresholds)
    intervals = {name: stratified_band(profile, by_task) for name, by_task in scores.items()}

    def draw(axis: Any, name: str) -> None:
        axis.plot(thresholds, profile(scores[name]), label=name, color=colours[name], linewidth=1.6)
        interval = intervals[name]
        if interval is not None:
            axis.fill_between(thresholds, *interval, color=colours[name], alpha=0.13, linewidth=0)

    return figure_of_cells(list(scores), draw, "Share of runs above τ", f"τ ({study.metric})")


def _draw_rates(study: Study, task: str, groups: RunsByName) -> Any:
    """Draw each family's compared metric along the learning rate; return None without families."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    found = families(study, task)
    for family in sorted(found, key=lambda family: study.baseline not in found[family]):
        for cell, rate in found[family].items():
            values = spread([run.last[study.metric] for run in groups.get(cell, []) if study.metric in run.last])
            if values is not None:
                lines.setdefault(family, []).append((rate, values["mean"], values["std"] or 0.0))
    if not lines:
        return None
    colours = cell_colours(list(lines))
    rates = sorted({rate for points in lines.values() for rate, _, _ in points})

    def draw(axis: Any, family: str) -> None:
        draw_line(axis, family, colours[family], *map(np.array, zip(*lines[family], strict=True)))
        axis.set_xscale("log")
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.minorticks_off()

    return figure_of_cells(list(lines), draw, f"{study.metric} at the end", "learning rate")


def _draw_difficulty(groups: RunsByName, colours: Mapping[str, Any], name: str, before: Mapping[str, Any]) -> Any:
    """Draw the accuracy on a validation set at the end by how hard a question was before training.

    Args:
        before: difficulty -> the accuracy before training.
    """
    after = {cell: by_difficulty(runs, at_end=True).get(name, {}) for cell, runs in groups.items()}
    places = list(before)

    def draw(axis: Any, cell: str) -> None:
        for label, found in ((BEFORE, before), (cell, after[cell])):
            points = [(places.index(group), one["mean"], one["std"] or 0.0) for group, one in found.items()]
            shown = label if label == cell or not axis.lines else "_"  # the first line names the model before
            draw_line(axis, shown, colours.get(label, "0.6"), *map(np.array, zip(*points, strict=True)))
        axis.set_xticks(range(len(places)), places)

    title = f"Accuracy on {name} at the end"
    return figure_of_cells([cell for cell in after if after[cell]], draw, title, "share correct before training")


def _draw_pass_at_k(groups: RunsByName, colours: Mapping[str, Any]) -> Any:
    """Draw pass@k after training and before it, with one pair of axes per validation set."""
    after = {name: pass_at_k_spreads([run.last for run in runs]) for name, runs in groups.items()}
    before = pass_at_k_spreads([run.rows.get(0, {}) for runs in groups.values() for run in runs])
    sets = sorted({name for found in after.values() for name in found})
    if not sets:
        return None
    figure, axes = new_figure("", "k", len(sets))
    for axis, name in zip(np.atleast_1d(axes), sets, strict=True):
        for cell, found in [(BEFORE, before), *after.items()]:
            if name in found:
                numbers = [(int(k), value["mean"], value["std"] or 0.0) for k, value in found[name].items()]
                draw_line(axis, cell, colours.get(cell, "0.5"), *map(np.array, zip(*numbers, strict=True)))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(f"pass@k, {name}")
    draw_legend(figure, np.atleast_1d(axes)[0])
    return figure


def _draw_final(study: Study, groups: RunsByName) -> Any:
    """Draw the compared metric, and pass@1 on the suites, at the end: bars with the deviation over seeds."""

    def values(run: FinishedRun) -> dict[str, float | None]:
        suites = {suite: results.get("pass@1", results.get("greedy")) for suite, results in run.suites.items()}
        return {study.metric: run.last.get(study.metric)} | suites

    return _draw_bars("At the end", groups, values)


def _draw_ends(groups: RunsByName) -> Any:
    """Draw the share of zero advantages in the first and last quarter of the runs; return None if no run has it."""

    def values(run: FinishedRun) -> dict[str, float | None]:
        found = quarters(run.history("train/zero_advantage"))
        return {"first quarter": found[0], "last quarter": found[-1]} if found else {}

    return _draw_bars("Share of zero advantages", groups, values)


def _draw_bars(title: str, groups: RunsByName, values_of: Callable[[FinishedRun], Mapping[str, float | None]]) -> Any:
    """Draw means with deviations over seeds: a group of bars per cell, and in it a bar per column.

    Args:
        values_of: returns a run's value for each column, or None.

    Returns:
        None if no run has a value.
    """
    bars: dict[str, dict[str, list[float]]] = {}
    for name, runs in groups.items():
        for column, value in (pair for run in runs for pair in values_of(run).items()):
            if value is not None:
                bars.setdefault(column, {}).setdefault(name, []).append(value)
    if not bars:
        return None
    figure, axis = new_figure(title, "")
    names = list(dict.fromkeys(name for cells in bars.values() for name in cells))
    width = 0.8 / len(bars)
    for k, (column, cells) in enumerate(bars.items()):
        places = [names.index(name) - 0.4 + (k + 0.5) * width for name in cells]
        deviations = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in cells.values()]
        axis.bar(places, [fmean(values) for values in cells.values()], width, yerr=deviations, label=column, capsize=2)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    draw_legend(figure, axis)
    return figure


def _draw_seconds(groups: RunsByName) -> Any:
    """Draw the seconds of an iteration by part, with the deviation of the total over seeds."""
    if not groups:
        return None
    figure, axis = new_figure("Seconds per rollout and its updates (median)", "")
    names = list(groups)
    parts = {
        part: np.array([np.mean([r.seconds[part] for r in groups[name]]) for name in names]) for part in TIME_PARTS
    }
    whole = [spread([run.seconds["step"] for run in groups[name]]) or {} for name in names]
    total = np.array([seconds["mean"] for seconds in whole])
    parts["other"] = np.maximum(total - sum(parts.values()), 0)
    below = np.zeros(len(names))
    for part, seconds in parts.items():
        axis.bar(names, seconds, bottom=below, label=part)
        below = below + seconds
    axis.errorbar(names, below, [seconds["std"] or 0.0 for seconds in whole], fmt="none", color="black", capsize=3)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    draw_legend(figure, axis)
    return figure
