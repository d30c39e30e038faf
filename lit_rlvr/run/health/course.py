"""What findings about a run are made of: metrics over its steps, and the thresholds that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lit_rlvr.common.terminal import number_text
from lit_rlvr.run.advice import GUIDE, WHAT_HELPS, RunHistory

RECENT = 4
"""Iterations that a mean is taken over."""
WORSE = 0.2
"""The rise of such a share above which it is reported, or reported again."""
FEW_SAMPLES, REPEAT = 0.3, 10
"""The effective sample size of the correction's weights, as a share of the tokens, below which an iteration is reported
(verl's bound, docs/algo/rollout_corr.md), and the iterations after which it may be reported again."""
EXPLODED, COLLAPSED = 4.0, 0.1
"""The multiples of the first entropy above and below which a run is reported."""
LONGER = 2.0
"""The multiple of the first mean length above which a run is reported."""
APART = 0.02
"""The difference of the engine's log-probabilities, in nats, above which its doubling is reported."""
CERTAIN = 2.0
"""The standard errors beyond which an accuracy differs from another."""
NOTHING_TRIED = RunHistory()
"""The history of a run of which nothing is known."""


Metrics = Mapping[int, Mapping[str, float]]
"""Step -> metric -> value."""


@dataclass(frozen=True)
class RunFinding:
    """A reason to look at a run.

    Args:
        title: what is wrong.
        evidence: the numbers.
        remedy: what to try; "" = nothing needs mending.
    """

    title: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.title}: {self.evidence}" + (f"{WHAT_HELPS}{self.remedy} ({GUIDE})." if self.remedy else "")


@dataclass(frozen=True)
class Course:
    """A metric's values in the order of their steps, with the means that are compared."""

    steps: list[int]
    values: list[float]

    @property
    def first(self) -> float:
        """The mean of the first `RECENT` values."""
        return fmean(self.values[:RECENT])

    @property
    def last(self) -> float:
        """The mean of the last `RECENT` values."""
        return fmean(self.values[-RECENT:])

    @property
    def middle(self) -> float:
        """The mean of the last `RECENT` values of the first half."""
        return fmean(self.values[: len(self.values) // 2][-RECENT:])

    @property
    def is_long(self) -> bool:
        """True if the first and the last mean share no value."""
        return len(self.values) >= 2 * RECENT

    @property
    def rises(self) -> bool:
        """True if the last mean exceeds the first by more than half of the range."""
        return self.is_long and self.last - self.first > 0.5 * (max(self.values) - min(self.values))

    def change(self) -> str:
        """Say the two means in words."""
        return f"{number_text(self.first)} in the first {RECENT} iterations, {number_text(self.last)} in the last"


def course(metrics: Metrics, name: str) -> Course:
    """Return a metric's course after the start of training; empty if it was not logged."""
    points = []
    for step, row in sorted(metrics.items()):
        if step > 0 and name in row:
            points.append((step, row[name]))
    return Course([step for step, _ in points], [value for _, value in points])
