"""Sequential tests of whether an accuracy fell by more than its noise allows, on numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import log1p, sqrt
from statistics import NormalDist, fmean, variance

FALSE_ALARMS = 0.05
"""The share of sound runs, however long, that a test may call fallen; it calls fewer of simulated ones."""
MARGIN = 0.1
"""The share of an accuracy whose loss is no fall, however certain it is."""
STRETCH = 8
"""Iterations of a stretch; the last iterations are compared with the best one before them."""
LENGTHS = (1, 2, 4, 8)
"""Numbers of last iterations that are compared with the best stretch."""
FEW_DIFFERENCES = 4
"""Differences between successive iterations that the spread of the prompts stands for."""


def certainty(fall: float, error: float, df: float) -> float:
    """Return a t statistic as a quantile of the standard normal distribution (Wallace 1959).

    Args:
        fall: the estimate.
        error: its standard error.
        df: the degrees of freedom of the error.
    """
    if fall > 0:
        return sqrt(df * log1p((fall / error) ** 2 / df)) * (8 * df + 1) / (8 * df + 3)
    return 0.0


def threshold(look: int, tests: int = 1) -> float:
    """Return the certainty above which an accuracy fell.

    Look k spends FALSE_ALARMS / (k (k + 1)), which adds up to FALSE_ALARMS over a run of any length.

    Args:
        look: the number of the look, from 1.
        tests: how many tests share what it spends.
    """
    return NormalDist().inv_cdf(1 - FALSE_ALARMS / (look * (look + 1) * tests))


def paired_certainty(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Return how certain it is that the same questions are answered worse, with one more that did not change.

    Args:
        before: question -> share of right completions.
        after: the same, later.
    """
    falls = []
    for question, share in before.items():
        if question in after:
            falls.append((1 - MARGIN) * share - after[question])
    falls.append(0.0)
    if fmean(falls) > 0:
        return certainty(fmean(falls), sqrt(variance(falls) / len(falls)), len(falls) - 1)
    return 0.0


class FallTest:
    """A sequential test of the accuracy of rollouts, which begins anew after a fall.

    It compares the last 1, 2, 4 and 8 iterations with the best stretch of 8 before them. The completions of a prompt
    are correlated, so the noise is the spread of the prompts' accuracies, or, if larger, that of successive iterations.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._totals: list[tuple[float, ...]] = [(0.0,) * 5]  # sums over the iterations before each
        self._best: list[tuple[int, int]] = []  # the best stretch up to each iteration
        self._last = 0.0

    def add(self, accuracy: float, error: float, prompts: float) -> tuple[int, float, float] | None:
        """Record an iteration; return the most certain fall, or None.

        Args:
            accuracy: its mean.
            error: its standard error by the spread of the prompts' accuracies; 0 = unknown.
            prompts: the number of prompts.

        Returns:
            How many last iterations are low, the accuracy of the best stretch, and that of the last iterations.
        """
        step = (accuracy - self._last) ** 2 if self._best else 0.0
        squares = prompts * ((prompts - 1) * error**2 + accuracy**2)
        new = accuracy, prompts, prompts * accuracy, squares, step
        self._totals.append(tuple(a + b for a, b in zip(self._totals[-1], new, strict=True)))
        self._last, count = accuracy, len(self._totals) - 1
        stretch = max(count - STRETCH, 0), count
        if count > STRETCH and self._mean(self._best[-1]) > self._mean(stretch):
            stretch = self._best[-1]
        self._best.append(stretch)
        certainties = {}
        for n in LENGTHS:
            if count > n:
                certainties[n] = self._certainty((count - n, count), self._best[count - n - 1])
        length = max(certainties, key=certainties.__getitem__, default=0)
        if not length or certainties[length] <= threshold(count, len(LENGTHS)):
            return None
        fall = length, self._mean(self._best[count - length - 1]), self._mean((count - length, count))
        self._begin()
        return fall

    def _sums(self, window: tuple[int, int]) -> tuple[float, ...]:
        start, end = window
        return tuple(b - a for a, b in zip(self._totals[start], self._totals[end], strict=True))

    def _mean(self, window: tuple[int, int]) -> float:
        return self._sums(window)[0] / (window[1] - window[0])

    def _variance(self, window: tuple[int, int]) -> tuple[float, float]:
        """Return the variance between the prompts of a window, with one more at a distance of 0.5, and their number."""
        _, prompts, right, squares, _ = self._sums(window)
        return (max(squares - right**2 / prompts, 0.0) + 0.25) / prompts, prompts

    def _certainty(self, last: tuple[int, int], best: tuple[int, int]) -> float:
        fall = (1 - MARGIN) * self._mean(best) - self._mean(last)
        if fall <= 0:
            return 0.0
        (last_var, last_prompts), (best_var, best_prompts) = self._variance(last), self._variance(best)
        pooled = (last_var * last_prompts + best_var * best_prompts) / (last_prompts + best_prompts)
        sampled = best_var * (best[1] - best[0]) / best_prompts  # the variance of an iteration by that of its prompts
        seen = FEW_DIFFERENCES * sampled + self._totals[last[0]][4] / 2
        inflation = max(seen / (FEW_DIFFERENCES + last[0] - 1) / sampled, 1.0)
        error = sqrt(inflation * pooled * (1 / last_prompts + 1 / best_prompts))
        return certainty(fall, error, last_prompts + best_prompts - 2)
