"""The base class of diversity measures: one number per prompt, averaged over the prompts of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

CompletionGroup = Sequence[str]
"""The completions of one prompt."""


class DiversityMeasure(Metric):
    """The mean over prompts of the number that `score` returns for each prompt's completions.

    `compute` returns `{name: mean, name/prompts: number of prompts in the mean}`; the mean is nan without prompts.
    """

    name: ClassVar[str]
    full_state_update = False
    total: Tensor
    prompts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("prompts", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def score(self, groups: Sequence[CompletionGroup]) -> list[float | None]:
        """Return one number per group of at least two completions; None where it is undefined."""
        raise NotImplementedError

    def update(self, groups: Sequence[CompletionGroup]) -> None:
        """Add prompts.

        Args:
            groups: the completions of each prompt, at least two each.
        """
        scores = []
        for score in self.score(groups):
            if score is not None:
                scores.append(score)
        self.total += sum(scores)
        self.prompts += len(scores)

    def compute(self) -> dict[str, Tensor]:
        return {self.name: self.total / self.prompts, f"{self.name}/prompts": self.prompts}


def measure_diversity(groups: Sequence[CompletionGroup], measures: Sequence[DiversityMeasure]) -> dict[str, float]:
    """Measure this rank's groups; return the values over all ranks.

    It is collective: call it on every rank, even without groups. It leaves out prompts with fewer than two completions.

    Args:
        groups: the completions of each prompt.
        measures: the measures to compute, whose state it resets first.

    Returns:
        `self_bleu_4`, `self_bleu_4/prompts`, `cosine_similarity`, ...: the results of the measures' `compute`.
    """
    results: dict[str, float] = {}
    for measure in measures:
        measure.reset()
        measure.update([group for group in groups if len(group) >= 2])
        results |= {name: float(value) for name, value in measure.compute().items()}
    return results
