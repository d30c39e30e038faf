"""Agreement of rewards that both say whether an answer is right, such as a rule and a judge."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain

import torch

from lit_rlvr.distributed.collectives import all_sum
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.types import Rollout

COUNTS = ("11", "10", "01", "00", "value of 1", "value of 0")
"""Counts of verdicts, the earlier reward's first and 1 = right; sums of this reward's values by the earlier verdict."""


def agreement_metrics(rollout: Scores | Rollout) -> dict[str, float]:
    """Compare each reward's verdicts with those of the first reward that reports `correct`.

    Collective: call it on every rank.

    Returns:
        `reward/<name>/kappa`, the agreement beyond chance (Cohen 1960), and `reward/<name>/of_right` and `of_wrong`,
        the mean reward of the completions that the earlier one calls right and wrong. NaN without completions that both
        judge.
    """
    names = [*rollout.parts][1:]
    if not names:
        return {}
    counts = Counter[tuple[str, str]]()
    for results in chain.from_iterable(rollout.details):
        earlier: bool | None = None
        for name, result in results.items():
            if earlier is not None and result.correct is not None:
                counts[name, f"{earlier:d}{result.correct:d}"] += 1
                counts[name, f"value of {earlier:d}"] += result.value  # type: ignore[assignment]
            if earlier is None:
                earlier = result.correct
    by_name = []
    for name in names:
        for kind in COUNTS:
            by_name.append(float(counts[name, kind]))
    sums = all_sum(torch.tensor(by_name, dtype=torch.float64).view(len(names), len(COUNTS)))
    metrics: dict[str, float] = {}
    for name, (*cells, right_sum, wrong_sum) in zip(names, sums.tolist(), strict=True):
        right_count = sum(cells[:2])
        wrong_count = sum(cells[2:])
        metrics |= {
            f"reward/{name}/kappa": kappa(*cells),
            f"reward/{name}/of_right": right_sum / right_count if right_count else math.nan,
            f"reward/{name}/of_wrong": wrong_sum / wrong_count if wrong_count else math.nan,
        }
    return metrics


def kappa(both: float, first: float, second: float, neither: float) -> float:
    """Return Cohen's kappa of two judges; NaN if chance explains everything.

    Args:
        both, first, second, neither: numbers of answers that both, only the first, only the second, and neither calls
            right.
    """
    count = both + first + second + neither
    chance = (both + first) * (both + second) + (neither + first) * (neither + second)
    if chance == count**2:  # also without answers
        return math.nan
    return (count * (both + neither) - chance) / (count**2 - chance)
