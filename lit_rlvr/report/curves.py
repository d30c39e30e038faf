"""Curves over optimizer steps: the mean over a group's runs, and the band from their lowest to their highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lit_rlvr.report.groups import Group
from lit_rlvr.report.runs import Run, metric_names

MOST_POINTS = 240
"""Longer curves are drawn as means over equal intervals: more points would not be visible."""

SHOWN = (
    ("Training reward", ("rollout/reward",)),
    ("Training accuracy", ("rollout/accuracy",)),
    ("Validation accuracy", ("val/accuracy",)),
    ("Entropy (nats per token)", ("train/entropy",)),
    ("Correct completions", ("rollout/correct_count",)),
    ("Completion length (tokens)", ("rollout/length",)),
    ("Share cut off", ("rollout/truncated",)),
    ("Share with zero advantage", ("train/zero_advantage",)),
    ("Seconds per iteration", ("time/rollout", "time/train")),
)
"""Title, and the metrics whose sum to draw."""


@dataclass(frozen=True)
class Curve:
    """A group's values at each step: the mean, lowest and highest over the runs that have one."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Panel:
    """One chart: a curve per group, or None if no run of the group has the metric."""

    title: str
    curves: list[Curve | None]


def curve(runs: Sequence[Run], metrics: Sequence[str]) -> Curve | None:
    """The sum of some metrics over a group's runs; None if no row has them all."""
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
    """A curve of at most `MOST_POINTS`: intervals of steps, each at its last step, with the mean of the means and the
    union of the bands."""
    width = -(-len(long.steps) // MOST_POINTS)
    if width == 1:
        return long
    parts = [slice(start, start + width) for start in range(0, len(long.steps), width)]
    return Curve(
        [long.steps[part][-1] for part in parts],
        [fmean(long.mean[part]) for part in parts],
        [min(long.low[part]) for part in parts],
        [max(long.high[part]) for part in parts],
    )


def panels(groups: Sequence[Group]) -> list[Panel]:
    """The charts of some groups: the logged ones of `SHOWN`, with accuracy and pass@k of each validation set after the
    validation accuracy."""
    wanted: list[tuple[str, tuple[str, ...]]] = []
    for title, metrics in SHOWN:
        wanted.append((title, metrics))
        if metrics == ("val/accuracy",):
            wanted += [(_validation_title(name), (name,)) for name in _validation_metrics(groups)]
    return _drawn(groups, wanted)


def more_panels(groups: Sequence[Group]) -> list[Panel]:
    """A chart of every other metric except validation's."""
    seen = {metric for _, metrics in SHOWN for metric in metrics}
    names = metric_names(run for group in groups for run in group.runs)
    other = [name for name in names if name not in seen and not name.startswith("val/") and name != "epoch"]
    return _drawn(groups, [(name, (name,)) for name in other])


def _drawn(groups: Sequence[Group], wanted: Sequence[tuple[str, tuple[str, ...]]]) -> list[Panel]:
    found = [Panel(title, [curve(group.runs, metrics) for group in groups]) for title, metrics in wanted]
    return [panel for panel in found if any(panel.curves)]


def _validation_metrics(groups: Sequence[Group]) -> list[str]:
    """`val/<set>/pass@k` for k above 1, and `val/<set>/accuracy` if there are several sets."""
    names = [name for name in metric_names(run for group in groups for run in group.runs) if name.startswith("val/")]
    accuracies = [name for name in names if name.endswith("/accuracy") and name.count("/") == 2]
    passes = [name for name in names if "/pass@" in name and not name.endswith("/pass@1")]
    return (accuracies if len(accuracies) > 1 else []) + passes


def _validation_title(name: str) -> str:
    _, _, rest = name.partition("/")
    part, _, metric = rest.rpartition("/")
    return f"{metric} on {part}"
