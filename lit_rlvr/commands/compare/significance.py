"""Statistics over seeds: tests whether two algorithms differ, and intervals of their means. Pure functions.

Student's tests come from scipy, the summary statistics from Agarwal et al. 2021, "Deep Reinforcement Learning at the
Edge of the Statistical Precipice".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean, stdev

import numpy as np

LEVEL = 0.05
POWER = 0.8
"""The probability with which `detectable` differences are found."""
RESAMPLES = 10_000
"""Bootstrap samples of an interval, and random choices of signs if there are too many to count all."""
MOST_PAIRS = 40
"""Largest number of differences for which the sign-flip test counts all choices of signs: 2^20 sums of each half."""
SUM_TIE = 1e-5
"""Difference of two sums of the sign-flip test, as a share of the largest, up to which they count as equal. Metrics are
logged in float32, which moves an accuracy of 0.5 by 3e-8 and a difference of 0.005 by 1e-5 of itself."""

ScoresByTask = Sequence[Sequence[float]]
"""One value per run, for each task."""


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's paired t-test; None if it is undefined.

    The test assumes normally distributed differences, which a few differences cannot confirm.

    Args:
        differences: one per seed. Fewer than two, or equal ones other than 0, have no p-value.
    """
    from scipy.stats import ttest_1samp

    if len(differences) < 2:
        return None
    if np.ptp(differences) < 1e-12:
        if abs(differences[0]) < 1e-12:
            return 1.0
        return None
    return float(ttest_1samp(differences, 0.0).pvalue)


def sign_flip_test(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the sign-flip permutation test; None without differences or with an infinite one.

    It is the share of choices of signs whose sum is at least as far from 0; sums within `SUM_TIE` of the largest one
    count as equal. It assumes only that a difference is as likely as its opposite.

    It is exact for up to `MOST_PAIRS` differences, so the smallest p-value of n is `2 / 2**n`: every sum is one of the
    first half's plus one of the second's, which are sorted and counted by binary search. Of more differences it draws
    `RESAMPLES` choices of signs with a fixed seed: the smallest p-value is 1e-4, its standard error at 0.05 is 0.002.

    Source: Fisher 1935, The Design of Experiments, section 21.
    """
    sizes = np.abs(np.asarray(differences, dtype=float))
    if not len(sizes) or not np.isfinite(sizes).all():
        return None
    observed = abs(math.fsum(differences)) - SUM_TIE * sizes.sum()
    if observed <= 0:
        return 1.0
    if len(sizes) > MOST_PAIRS:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (RESAMPLES, len(sizes)))
        return float((1 + (np.abs(signs @ sizes) >= observed).sum()) / (1 + RESAMPLES))
    first = np.sort(_signed_sums(sizes[::2]))
    second = np.sort(_signed_sums(sizes[1::2]))
    above = len(first) * len(second) - np.searchsorted(second, observed - first).sum()
    return float(2 * above / (len(first) * len(second)))  # each choice and its opposite are as far


def _signed_sums(sizes: np.ndarray) -> np.ndarray:
    """Return the sums of n numbers under all choices of signs, (2^n,)."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def smaller_test(differences: Sequence[float], size: float) -> float:
    """Return the one-sided p-value of Student's test that the true mean difference is at least this size.

    Equal differences have a p-value of 0 or 1.
    """
    from scipy.stats import ttest_1samp

    if np.ptp(differences) < 1e-12:
        return float(differences[0] >= size)
    return float(ttest_1samp(differences, size, alternative="less").pvalue)


def t_interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval of a mean by Student's t; None for fewer than two values.

    With ten values or fewer the percentile bootstrap's interval is too narrow, because it takes the sample's deviation
    for the true one.
    """
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = t.ppf(1 - LEVEL / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return [float(mean(values) - half), float(mean(values) + half)]


def interquartile_mean(scores: ScoresByTask) -> np.ndarray:
    """Return the mean of the middle half of all runs of all tasks (Agarwal et al. 2021, section 4.3).

    Args:
        scores: for each task, the runs along the last axis.

    Returns:
        The mean over that axis.
    """
    from scipy.stats import trim_mean

    scores_of_tasks = []
    for task in scores:
        scores_of_tasks.append(np.asarray(task, dtype=float))
    return np.asarray(trim_mean(np.concatenate(scores_of_tasks, -1), 0.25, axis=-1))


def probability_of_improvement(ours: ScoresByTask, theirs: ScoresByTask) -> np.ndarray:
    """Return the probability that one of our runs beats one of theirs on a random task.

    Ties count half (Agarwal et al. 2021, section 4.3).

    Args:
        ours: for each task, the runs along the last axis.
        theirs: as `ours`.

    Returns:
        The probability, without that axis.
    """
    shares = []
    for x, y in zip(ours, theirs, strict=True):
        difference = np.asarray(x, dtype=float)[..., :, None] - np.asarray(y, dtype=float)[..., None, :]
        shares.append((np.sign(difference) / 2 + 0.5).mean((-1, -2)))
    return np.mean(shares, 0)


def stratified_band(statistic: Callable[..., np.ndarray], *scores: ScoresByTask) -> np.ndarray | None:
    """Return the 95 % percentile interval of a statistic, (2, ...); None if some task has a single run.

    The bootstrap resamples the runs of each task and algorithm (Agarwal et al. 2021, section 4.2).

    Args:
        statistic: `interquartile_mean` or `probability_of_improvement`.
        scores: the arguments of the statistic.
    """
    if min(len(task) for argument in scores for task in argument) < 2:
        return None
    rng = np.random.default_rng(0)

    def resampled(tasks: Sequence[Sequence[float]]) -> list[np.ndarray]:
        draws = []
        for task in tasks:
            draws.append(np.asarray(task, dtype=float)[rng.integers(0, len(task), (RESAMPLES, len(task)))])
        return draws

    values = statistic(*map(resampled, scores))
    return np.asarray(np.percentile(values, [2.5, 97.5], axis=0))


def detectable(n: int) -> float:
    """Return the smallest true difference that the paired t-test finds with probability `POWER`.

    The unit is the standard deviation of the differences.

    Args:
        n: number of pairs, at least 2.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = t.ppf(1 - LEVEL / 2, n - 1)

    def missing(effect: float) -> float:
        return float(nct.sf(critical, n - 1, effect * math.sqrt(n))) - POWER

    return float(brentq(missing, 1e-3, (2 * critical + 10) / math.sqrt(n)))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons: the chance of even one false finding stays below the level.

    Source: Holm 1979.
    """
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted


def p_text(p: float) -> str:
    """Return a p-value with three digits, or with four where three do not show on which side of the level it lies."""
    short = f"{p:.3f}" if p >= 1e-3 else "< 0.001"
    if short == f"{LEVEL:.3f}":
        return f"{p:.4f}"
    return short


def least_pairs(comparisons: int) -> int:
    """Return the fewest pairs with which the sign-flip test can reach the level after Holm's correction.

    Its smallest p-value is `2 / 2**n`, so it needs `comparisons * 2 / 2**n <= LEVEL`.
    """
    return math.ceil(1 + math.log2(comparisons / LEVEL))
