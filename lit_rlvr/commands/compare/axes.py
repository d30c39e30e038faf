"""Figures and axes of a study's pictures: lines with bands, colours of cells, legends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_IN_LEGEND = 26
"""The most names in a column of a legend."""


def new_figure(title: str, x: str, count: int = 1) -> tuple[Any, Any]:
    """Return a figure and its pairs of axes, next to one another.

    Args:
        x: label of the x axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 5.2 * count, 4.4), layout="constrained")
    axes = figure.subplots(1, count)
    for axis in np.atleast_1d(axes):
        axis.set_title(title)
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
    return figure, axes


def draw_line(axis: Any, name: str, colour: Any, x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> None:
    """Draw means with their deviations as a band: (n,) each."""
    marker = "o" if len(x) <= 20 else None
    axis.plot(x, mean, label=name, color=colour, linewidth=1.6, marker=marker, markersize=3)
    axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.13, linewidth=0)


def draw_legend(figure: Any, axis: Any) -> None:
    """Draw the legend of a pair of axes next to the figure, in more columns if it has many names."""
    handles, labels = axis.get_legend_handles_labels()
    columns = 1 + (len(labels) - 1) // MOST_IN_LEGEND
    figure.set_figwidth(figure.get_figwidth() + 1.5 * (columns - 1))
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, ncols=columns)


def cell_colours(names: Sequence[str]) -> dict[str, Any]:
    """Return the colours of the cells; the baseline, which is first, is black."""
    import matplotlib

    palette = matplotlib.colormaps["tab10" if len(names) <= 11 else "tab20"].colors  # type: ignore[attr-defined]
    return {name: "black" if i == 0 else palette[(i - 1) % len(palette)] for i, name in enumerate(names)}


def save_figure(figure: Any, path: Path) -> Path:
    """Write a PNG file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
