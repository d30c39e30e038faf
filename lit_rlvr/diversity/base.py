"""The base class of diversity measures: one number per prompt, averaged over the prompts of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

Group = Sequence[str]
"""The completions of one prompt."""


class DiversityMeasure(Metric):
    """The mean over prompts of the number that `score` returns for each prompt's completions.

    `compute` returns `{name: mean, name/prompts: number of prompts that counted}`; the mean is nan if there are none.
    """

    name: ClassVar[str]
    correct_only: ClassVar[bool] = False  # defined only on the correct completions of a prompt
    full_state_update = False
    total: Tensor
    prompts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("prompts", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def score(self, groups: Sequence[Group]) -> list[float | None]:
        """One number per group of at least two completions; None if it is undefined."""
        raise NotImplementedError

    def update(self, groups: Sequence[Group]) -> None:
        """Add prompts.

        Args:
            groups: the completions of each prompt, at least two each.
        """
        for group in groups:
            if len(group) < 2:
                raise ValueError(f"{self.name} compares completions: a prompt needs at least 2, got {len(group)}")
        scores = [score for score in self.score(groups) if score is not None]
        self.total += sum(scores)
        self.prompts += len(scores)

    def compute(self) -> dict[str, Tensor]:
        return {self.name: self.total / self.prompts, f"{self.name}/prompts": self.prompts}


def measure_diversity(
    groups: Sequence[Group], measures: Sequence[DiversityMeasure], correct: Sequence[Sequence[bool]] | None = None
) -> dict[str, float]:
    """Measure this rank's groups; returns the values over all ranks. Collective: call it on every rank, even without
    groups.

    Prompts with fewer than two completions are left out.

    Args:
        groups: the completions of each prompt.
        measures: the measures to compute; their state is reset first.
        correct: whether each completion is correct. Measures defined on correct completions (`correct_only`:
            JudgeScore) then see only those; without it they see all.

    Returns:
        `self_bleu_4`, `self_bleu_4/prompts`, `cosine_similarity`, ...: the results of the measures' `compute`.
    """
    results: dict[str, float] = {}
    for measure in measures:
        seen = groups
        if measure.correct_only and correct is not None:
            seen = [
                [text for text, right in zip(group, rights, strict=True) if right]
                for group, rights in zip(groups, correct, strict=True)
            ]
        measure.reset()
        measure.update([group for group in seen if len(group) >= 2])
        results |= {name: float(value) for name, value in measure.compute().items()}
    return results
