"""Line charts: curves over optimizer steps with bands over runs, laid out for the SVG of `templates/charts.html`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import fmean
from typing import Any

from lit_rlvr.commands.report.groups import RunGroup
from lit_rlvr.commands.report.runs import RunRecord, metric_names
from lit_rlvr.common.terminal import number_text

CHART_WIDTH = 340
CHART_HEIGHT = 190
LEFT = 44
RIGHT = 10
TOP = 8
BOTTOM = 24
MAX_MARKED_POINTS = 13
"""A curve with at most this many points shows each of them."""


def chart(title: str, curves_of_groups: Sequence[Curve | None], numbers: Sequence[int]) -> dict[str, Any]:
    """Lay out a panel for `templates/charts.html`.

    Args:
        title: title of the panel.
        curves_of_groups: the panel's curves, at least one of which is there.
        numbers: numbers of its groups on the page.

    Returns:
        `title`; `summary`: the ends of a single curve; `x_ticks`, `y_ticks`: (place, label); `lines`: for each curve
        the number of its `group`, the `path` of the mean, the outline of the `band` ("" = none), and `points` with
        their numbers.
    """
    curves = []
    for number, curve in zip(numbers, curves_of_groups, strict=True):
        if curve is not None:
            curves.append((number, curve))
    low = min(min(c.low) for _, c in curves)
    high = max(max(c.high) for _, c in curves)
    ticks = nice_ticks(0.0 if 0 <= low < 0.6 * high or 0 <= low == high else low, high)
    last = max(1, *(c.steps[-1] for _, c in curves))
    x = partial(scale, low=0, high=last, start=LEFT, end=CHART_WIDTH - RIGHT)
    y = partial(scale, low=ticks[0], high=ticks[-1], start=CHART_HEIGHT - BOTTOM, end=TOP)
    steps = []
    for step in nice_ticks(0, last, most=7):
        if step <= last and step == int(step):
            steps.append(step)
    ends = set()
    for _, c in curves:
        ends.add((number_text(c.mean[0]), number_text(c.mean[-1])))
    return dict(
        title=title,
        summary=" \N{RIGHTWARDS ARROW} ".join(next(iter(ends))) if len(curves) == 1 else "",
        x_ticks=[(x(step), tick_text(step)) for step in steps],
        y_ticks=[(y(tick), tick_text(tick)) for tick in ticks],
        lines=[_chart_line(number, curve, x, y) for number, curve in curves],
    )


def scale(value: float, low: float, high: float, start: float, end: float) -> float:
    """Map a value linearly from [low, high] to [start, end]."""
    return round(start + (value - low) / (high - low) * (end - start), 1)


def _chart_line(number: int, curve: Curve, x: Callable[[float], float], y: Callable[[float], float]) -> dict[str, Any]:
    def points(values: list[float]) -> list[str]:
        points = []
        for step, value in zip(curve.steps, values, strict=True):
            points.append(f"{x(step)},{y(value)}")
        return points

    outline = [*points(curve.high), *reversed(points(curve.low))]
    marks = []
    for step, mean, low, high in zip(curve.steps, curve.mean, curve.low, curve.high, strict=True):
        title = f"step {step}: {number_text(mean)}"
        if low != high:
            title += f" ({number_text(low)} to {number_text(high)})"
        marks.append((x(step), y(mean), title))
    return dict(
        group=number,
        path="M" + "L".join(points(curve.mean)),
        band=f"M{'L'.join(outline)}Z" if curve.low != curve.high else "",
        points=marks if len(marks) <= MAX_MARKED_POINTS else [],
    )


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return about `most` round numbers from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    unit = 10 ** math.floor(math.log10(span / (most - 1)))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor * (most - 1) >= span * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    ticks = []
    for k in range(first, max(last, first + 1) + 1):
        ticks.append(round(k * step, 12 - math.floor(math.log10(step))))
    return ticks


def tick_text(value: float) -> str:
    """Return a tick's short label: 12k for 12000, 2e-5 for 0.00002."""
    if value and abs(value) < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-")
    if abs(value) >= 10_000:
        return f"{value / 1000:.6g}k"
    return f"{value:.6g}"


ChartMetrics = Sequence[tuple[str, tuple[str, ...]]]
MAX_POINTS = 240
"""The most points of a drawn curve; a longer curve shows means over equal intervals."""

BEFORE_SETS: ChartMetrics = (
    ("Training reward", ("rollout/reward",)),
    ("Training accuracy", ("rollout/accuracy",)),
    ("Validation accuracy", ("val/accuracy",)),
)
"""Title -> metrics of the first charts; a chart draws their sum."""
AFTER_SETS: ChartMetrics = (
    ("Sampled divergence from the teacher (nats per token)", ("train/teacher_kl",)),
    ("Divergence from the teacher (nats per token)", ("train/teacher_divergence",)),
    ("Entropy (nats per token)", ("train/entropy",)),
    ("Correct completions", ("rollout/correct_count",)),
    ("Completion length (tokens)", ("rollout/length",)),
    ("Tokens of thoughts", ("rollout/thought_tokens",)),
    ("Share cut off", ("rollout/truncated",)),
    ("Share whose thoughts never end", ("rollout/unclosed_thoughts",)),
    ("No signal (share of prompts)", ("train/no_signal",)),
    ("Seconds per iteration", ("time/rollout", "time/train")),
)
"""Those of the charts behind those of the validation sets."""


@dataclass(frozen=True)
class Curve:
    """A group's values at each step: the mean, lowest and highest over the runs that have one.

    Args:
        steps: optimizer steps with a value.
        mean: mean over the runs, for each step.
        low: lowest value of a run, for each step.
        high: highest value of a run, for each step.
    """

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


Panel = tuple[str, list[Curve | None]]
"""One chart: its title, and a curve per group, or None if no run of the group has the metric."""


def curve(runs: Sequence[RunRecord], metrics: Sequence[str]) -> Curve | None:
    """Return the sum of some metrics over a group's runs; None if no row has them all."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for step, row in run.metrics.items():
            if all(metric in row for metric in metrics):
                values.setdefault(step, []).append(sum(row[metric] for metric in metrics))
    if not values:
        return None
    steps = sorted(values)
    at = [values[step] for step in steps]
    return thin(Curve(steps, [fmean(v) for v in at], [min(v) for v in at], [max(v) for v in at]))


def thin(long: Curve) -> Curve:
    """Reduce a curve to at most `MAX_POINTS`.

    Each interval of steps becomes a point at its last step, with the mean of the means and the union of the bands.
    """
    width = -(-len(long.steps) // MAX_POINTS)
    if width == 1:
        return long
    parts = []
    for start in range(0, len(long.steps), width):
        parts.append(slice(start, start + width))
    return Curve(
        [long.steps[part][-1] for part in parts],
        [fmean(long.mean[part]) for part in parts],
        [min(long.low[part]) for part in parts],
        [max(long.high[part]) for part in parts],
    )


def panels(groups: Sequence[RunGroup]) -> list[Panel]:
    """Return the main charts of some groups.

    Accuracy and pass@k of each validation set come after the validation accuracy.
    """
    names = ((name, name.removeprefix("val/").rpartition("/")) for name in _validation_metrics(groups))
    set_charts = []
    for name, (part, _, metric) in names:
        set_charts.append((f"{metric} on {part}", (name,)))
    return _drawn(groups, [*BEFORE_SETS, *set_charts, *AFTER_SETS])


def more_panels(groups: Sequence[RunGroup]) -> list[Panel]:
    """Return a chart of every other metric except validation's."""
    seen = {metric for _, metrics in (*BEFORE_SETS, *AFTER_SETS) for metric in metrics} | {"epoch"}
    names = metric_names(run for group in groups for run in group.runs)
    others = []
    for name in names:
        if name not in seen and not name.startswith("val/"):
            others.append((name, (name,)))
    return _drawn(groups, others)


def _drawn(groups: Sequence[RunGroup], wanted: ChartMetrics) -> list[Panel]:
    panels = []
    for title, metrics in wanted:
        curves = []
        for group in groups:
            curves.append(curve(group.runs, metrics))
        if any(curves):
            panels.append((title, curves))
    return panels


def _validation_metrics(groups: Sequence[RunGroup]) -> list[str]:
    """Return `val/<set>/pass@k` for k above 1, and `val/<set>/accuracy` if there are several sets."""
    runs = chain(*(group.runs for group in groups))
    names = []
    for name in metric_names(runs):
        if name.startswith("val/"):
            names.append(name)
    accuracies = []
    for name in names:
        if name.endswith("/accuracy") and name.count("/") == 2:
            accuracies.append(name)
    passes = []
    for name in names:
        if "/pass@" in name and not name.endswith("/pass@1"):
            passes.append(name)
    return (accuracies if len(accuracies) > 1 else []) + passes
