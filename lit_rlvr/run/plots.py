"""Plots a run: reward, accuracy, entropy and length over its steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PANELS = (
    ("Reward", (("rollout/reward", "training reward"),)),
    ("Accuracy", (("rollout/accuracy", "training rollouts"), ("val/accuracy", "validation"))),
    ("Entropy (nats per token)", (("train/entropy", "policy"),)),
    ("Completion length (tokens)", (("rollout/length", "training rollouts"),)),
)


def plot_run(rows: Mapping[int, Mapping[str, float]], path: Path, title: str) -> None:
    """Draw a run's curves.

    Args:
        rows: {step: {metric: value}}, as in metrics.csv.
        path: the PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.5), constrained_layout=True)
    for axis, (label, lines) in zip(axes.flat, PANELS, strict=True):
        for metric, name in lines:
            points = [(step, row[metric]) for step, row in sorted(rows.items()) if metric in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=name)
        axis.set_title(label)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend()
        if label in ("Reward", "Accuracy"):
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
