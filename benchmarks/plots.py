"""The curves of a benchmark as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Panel:
    """One pair of axes.

    Args:
        curves: name -> (x values, y values).
        logarithmic: both axes, to base 2; otherwise y begins at 0.
    """

    title: str
    x: str
    y: str
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    logarithmic: bool = True


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels in one row, and save them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for name, (x, y) in panel.curves.items():
            axis.plot(x, y, "o-" if panel.logarithmic else "-", label=name)
        if panel.logarithmic:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
        else:
            axis.set_ylim(bottom=0)
        axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
