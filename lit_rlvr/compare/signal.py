"""How strongly each advantage weights easy and hard prompts: sum |A| of a group against its share of correct answers,
as in figure 6 of the A-GRAE paper. It needs no model."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_rlvr.advantages import GroupBatch
from lit_rlvr.advantages.base import REGISTRY, Advantage


def signal(advantage: Advantage, size: int) -> list[float]:
    """Sum |A| of a group with 0, 1, ..., `size` correct completions, with rewards 0 and 1.

    Each group is a batch of its own, so that the batch's proficiency is the group's; completions are equally long, and
    reference completions are right and wrong in turn.
    """
    sums = []
    for correct in range(size + 1):
        rewards = (torch.arange(size) < correct).double()[None]  # (1, G)
        reference = (torch.arange(size) % 2 == 0).double()[None]
        group = GroupBatch(rewards, rewards, reference, torch.full_like(rewards, 100.0))
        sums.append(float(advantage(group).abs().sum()))
    return sums


def draw_signal(path: Path, size: int = 16) -> None:
    """Draw every registered advantage, with its defaults, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.4, 4.4), constrained_layout=True)
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    shares = [correct / size for correct in range(size + 1)]
    for k, (name, cls) in enumerate(sorted(REGISTRY.items())):
        axis.plot(shares, signal(cls(), size), label=name, color=colours[k % 20], marker="o", markersize=2)
    axis.set_yscale("symlog", linthresh=1.0)
    axis.set_title(f"Sum |A| of a group of {size}")
    axis.set_xlabel("share of correct completions, p")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
