"""The papers' figures for a study: curves with bands over seeds, pass@k, time, and each advantage's signal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from lit_rlvr.advantages import GroupBatch
from lit_rlvr.advantages.base import REGISTRY, Advantage
from lit_rlvr.commands.compare.numbers import FinishedRun, pass_at_k_spreads, quarters, spread
from lit_rlvr.commands.compare.study import BEFORE, Study


def signal(advantage: Advantage, size: int) -> list[float]:
    """Return sum |A| of groups with 0, 1, ..., `size` correct completions, with rewards 0 and 1.

    Each group is a batch of its own, so that the batch's proficiency is the group's. All completions are equally long;
    reference completions alternate between right and wrong.
    """
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

    size = 16
    figure, axis = _figure(f"Sum |A| of a group of {size}", "share of correct completions, p")
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    shares = [correct / size for correct in range(size + 1)]
    for k, (name, cls) in enumerate(sorted(REGISTRY.items())):
        axis.plot(shares, signal(cls(), size), label=name, color=colours[k % 20], marker="o", markersize=2)
    axis.set_yscale("symlog", linthresh=1.0)
    _legend(figure, axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    _close()


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

TIME_PARTS = ("generate", "score", "train")
"""Parts of an iteration's time; a reference model's rollouts and the weight sync make up the rest."""

RunsByName = Mapping[str, Sequence[FinishedRun]]


def draw_figures(study: Study, runs: Sequence[FinishedRun], folder: Path) -> dict[str, list[Path]]:
    """Draw every figure for which there is data.

    Args:
        folder: receives a subfolder for each task.

    Returns:
        Task -> PNG files, relative to the parent of `folder`.
    """
    drawn: dict[str, list[Path]] = {}
    for task in study.tasks:
        groups = {name: [r for r in runs if (r.cell.task, r.cell.name) == (task, name)] for name in study.names}
        groups = {name: found for name, found in groups.items() if found}
        colours = _colours(study.names)
        curves = CURVES | {
            f"{metric}_{name}": (f"val/{name}/{metric}", title.format(name))
            for metric, title in SET_CURVES.items()
            for name in _sets(groups, metric)
        }
        figures = {name: _draw_curve(study, groups, colours, *curves[name]) for name in curves} | {
            "pass_at_k": _draw_pass_at_k(groups, colours),
            "final": _draw_final(study, groups),
            "zero_advantage_ends": _draw_ends(groups),
            "time_per_step": _draw_seconds(groups),
        }
        drawn[task] = []
        for name, figure in figures.items():
            if figure is not None:
                path = folder / task / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=110)
                drawn[task].append(path.relative_to(folder.parent))
        _close()
    return drawn


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


def smoothed(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return running means over a twelfth of the points; curves of fewer than 24 points stay unchanged."""
    half = len(curve) // 24
    windows = [curve[max(0, i - half) : i + half + 1] for i in range(len(curve))]
    return [(x, fmean(value for _, value in window)) for (x, _), window in zip(curve, windows, strict=True)]


def _draw_curve(study: Study, groups: RunsByName, colours: Mapping[str, Any], metric: str, title: str) -> Any:
    """Draw one metric along the study's budget; return None if no run has it."""
    unit = study.budget[0]
    bands = {name: band(runs, None if unit == "steps" else f"used/{unit}", metric) for name, runs in groups.items()}
    if not any(bands.values()):
        return None
    figure, axis = _figure(
        title, {"steps": "step", "samples": "sampled completions", "tokens": "generated tokens"}[unit]
    )
    for name, found in bands.items():
        if found is not None:
            _draw_line(axis, name, colours[name], *found)
    _legend(figure, axis)
    return figure


def _draw_pass_at_k(groups: RunsByName, colours: Mapping[str, Any]) -> Any:
    """Draw pass@k after training and before it, with one pair of axes per validation set."""
    after = {name: pass_at_k_spreads([run.last for run in runs]) for name, runs in groups.items()}
    before = pass_at_k_spreads([run.rows.get(0, {}) for runs in groups.values() for run in runs])
    sets = sorted({name for found in after.values() for name in found})
    if not sets:
        return None
    figure, axes = _figure("", "k", len(sets))
    for axis, name in zip(np.atleast_1d(axes), sets, strict=True):
        for cell, found in [(BEFORE, before), *after.items()]:
            if name in found:
                numbers = [(int(k), value["mean"], value["std"] or 0.0) for k, value in found[name].items()]
                _draw_line(axis, cell, colours.get(cell, "0.5"), *map(np.array, zip(*numbers, strict=True)))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(f"pass@k, {name}")
    _legend(figure, np.atleast_1d(axes)[0])
    return figure


def _draw_final(study: Study, groups: RunsByName) -> Any:
    """Draw the compared metric, and pass@1 on the suites, at the end: bars with the deviation over seeds."""
    bars: dict[str, dict[str, list[float]]] = {}
    for name, runs in groups.items():
        for run in runs:
            values = {study.metric: run.last[study.metric]} if study.metric in run.last else {}
            values |= {suite: r.get("pass@1", r.get("greedy")) for suite, r in run.suites.items()}
            for column, value in values.items():
                if value is not None:
                    bars.setdefault(column, {}).setdefault(name, []).append(value)
    return _draw_bars("At the end", bars) if bars else None


def _draw_ends(groups: RunsByName) -> Any:
    """Draw the share of zero advantages in the first and last quarter of the runs; return None if no run has it."""
    bars: dict[str, dict[str, list[float]]] = {}
    for name, runs in groups.items():
        for history in filter(None, (quarters(run.history("train/zero_advantage")) for run in runs)):
            for column, value in (("first quarter", history[0]), ("last quarter", history[-1])):
                if value is not None:
                    bars.setdefault(column, {}).setdefault(name, []).append(value)
    return _draw_bars("Share of zero advantages", bars) if bars else None


def _draw_bars(title: str, bars: Mapping[str, Mapping[str, Sequence[float]]]) -> Any:
    """Draw means with deviations: a group of bars per cell, and in it a bar per column.

    Args:
        bars: column -> cell -> values over seeds.
    """
    figure, axis = _figure(title, "")
    names = list(dict.fromkeys(name for cells in bars.values() for name in cells))
    width = 0.8 / len(bars)
    for k, (column, cells) in enumerate(bars.items()):
        places = [names.index(name) - 0.4 + (k + 0.5) * width for name in cells]
        deviations = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in cells.values()]
        axis.bar(places, [fmean(values) for values in cells.values()], width, yerr=deviations, label=column, capsize=2)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    _legend(figure, axis)
    return figure


def _draw_seconds(groups: RunsByName) -> Any:
    """Draw the seconds of an iteration by part, with the deviation of the total over seeds."""
    if not groups:
        return None
    figure, axis = _figure("Seconds per rollout and its updates (median)", "")
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
    _legend(figure, axis)
    return figure


def _figure(title: str, x: str, count: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(2.2 + 5.2 * count, 4.4), constrained_layout=True)
    for axis in np.atleast_1d(axes):
        axis.set_title(title)
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
    return figure, axes


def _draw_line(axis: Any, name: str, colour: Any, x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> None:
    marker = "o" if len(x) <= 20 else None
    axis.plot(x, mean, label=name, color=colour, linewidth=1.6, marker=marker, markersize=3)
    axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.13, linewidth=0)


def _legend(figure: Any, axis: Any) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _colours(names: Sequence[str]) -> dict[str, Any]:
    """Return the colours of the cells; the baseline, which is first, is black."""
    import matplotlib

    palette = matplotlib.colormaps["tab10" if len(names) <= 11 else "tab20"].colors  # type: ignore[attr-defined]
    return {name: "black" if i == 0 else palette[(i - 1) % len(palette)] for i, name in enumerate(names)}


def _close() -> None:
    from matplotlib import pyplot

    pyplot.close("all")
