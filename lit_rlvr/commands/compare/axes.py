"""Figures and axes of a study's pictures: lines with bands, colours of cells, legends, panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

MOST_IN_LEGEND = 26
"""The most names in a column of a legend."""
MOST_TOGETHER = 8
"""The most cells that `figure_of_cells` draws in one pair of axes."""
PANEL_COLUMNS = 6


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


def figure_of_cells(names: Sequence[str], draw: Callable[[Any, str], None], title: str, x: str) -> Any:
    """Draw cells together, or, if they are many, each in a panel with the first one, to the same scale where possible.

    Args:
        names: the cells, starting with the baseline.
        draw: draws a cell in a pair of axes.
        x: label of the x axes.
    """
    from matplotlib.figure import Figure

    if len(names) <= MOST_TOGETHER:
        figure, axis = new_figure(title, x)
        for name in names:
            draw(axis, name)
        draw_legend(figure, axis)
        return figure
    first, *others = names
    columns = min(PANEL_COLUMNS, len(others))
    rows = -(-len(others) // columns)
    figure = Figure(figsize=(2.4 * columns, 0.8 + 2.0 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, name in zip(panels, others, strict=False):
        draw(axis, first)
        draw(axis, name)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.tick_params(axis="x", labelrotation=30)
        axis.grid(alpha=0.3)
    for axis in panels[len(others) :]:
        axis.set_visible(False)
    for direction in "xy":
        _share_limits(panels[: len(others)], direction)
    figure.suptitle(f"{title} (each with {first})")
    figure.supxlabel(x)
    return figure


def _share_limits(panels: Sequence[Any], direction: str) -> None:
    """Give panels the same limits, apart from those with over twice the median range, such as a collapsed cell's."""
    limits = [getattr(axis, f"get_{direction}lim")() for axis in panels]
    most = 2 * median(high - low for low, high in limits)
    alike = [(axis, low, high) for axis, (low, high) in zip(panels, limits, strict=True) if high - low <= most]
    for axis, _, _ in alike:
        getattr(axis, f"set_{direction}lim")(min(low for _, low, _ in alike), max(high for _, _, high in alike))


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
