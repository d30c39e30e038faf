"""Plots a replay: each algorithm's gradient weight for every token of the same batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def plot_weights(weights: Mapping[str, np.ndarray], mask: np.ndarray, path: Path) -> None:
    """Draw one map per algorithm, with one row per completion; red tokens are pushed up, blue ones down.

    Args:
        weights: name -> (B, T) gradient weight of each token, `-dloss/dlogp`.
        mask: (B, T) bool; tokens outside the loss stay grey.
        path: the PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(weights))
    lines = math.ceil(len(weights) / columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(4.2 * columns, 3.2 * lines), squeeze=False, constrained_layout=True
    )
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.85")
    for axis in axes.flat[len(weights) :]:
        axis.set_visible(False)
    for axis, (name, values) in zip(axes.flat, weights.items(), strict=False):
        size = np.abs(values)
        most = float(size.max())
        top = min(most, 10 * float(np.median(size[size > 0]))) if most > 0 else 1.0  # outliers must not hide others
        shown = np.ma.masked_array(values, ~mask)
        image = axis.imshow(shown, cmap=colours, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
        cut = "both" if most > top else "neither"
        figure.colorbar(image, ax=axis, ticks=[-top, 0, top], format="%.1e", extend=cut)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(name if cut == "neither" else f"{name} (largest {most:.1e})")
        axis.set_xlabel("token")
        axis.set_ylabel("completion")
    figure.suptitle("Gradient weight of each token: red is made likelier, blue less likely, grey is not in the loss")
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)
