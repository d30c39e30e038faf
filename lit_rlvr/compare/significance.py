"""Tests whether two algorithms differ, from their results with the same seeds. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

LEVEL = 0.05
MOST_PAIRS = 20
"""Largest number of differences for which all signs are tried."""


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of Student's paired t-test; None if it is undefined.

    It assumes normally distributed differences, which a few of them cannot show.

    Args:
        differences: one per seed. Fewer than two, or equal ones other than 0, have no p-value.
    """
    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    if variance < 1e-24:
        return 1.0 if abs(mean) < 1e-12 else None
    return student_tail(abs(mean) / math.sqrt(variance / n), n - 1)


def student_tail(t: float, freedom: int) -> float:
    """P(|T| > t) for Student's distribution with an integer number of degrees of freedom.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):  # cos^(k - 2) times a ratio of double factorials
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return max(0.0, 1 - inside)


def sign_flip_test(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the exact sign-flip permutation test: the share of all choices of signs whose sum is at
    least as far from 0. None without differences, or with more than `MOST_PAIRS`.

    It assumes only that a difference is as likely as its opposite. With n differences the smallest p-value is
    `2 / 2**n`. Source: Fisher 1935, The Design of Experiments, section 21.
    """
    if not 1 <= len(differences) <= MOST_PAIRS:
        return None
    seen = abs(math.fsum(differences)) - 1e-12
    sizes = [abs(d) for d in differences]
    sums = (math.fsum(s * size for s, size in zip(signs, sizes, strict=True)) for signs in flips(len(sizes)))
    return sum(abs(total) >= seen for total in sums) / 2 ** len(sizes)


def flips(n: int) -> product[tuple[int, ...]]:
    """All choices of n signs."""
    return product((1, -1), repeat=n)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple comparisons: the chance of even one false finding stays below the level.

    Source: Holm 1979.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted


def limits(pairs: int) -> str:
    """A sentence about what so few pairs cannot show; "" if there are enough."""
    if pairs < 2:
        return f"{pairs} seed{'s' * (pairs != 1)} cannot be tested."
    smallest = 2 / 2**pairs
    if smallest <= LEVEL:
        return ""
    return (
        f"With {pairs} seeds the sign-flip test cannot go below {smallest:g}, so it cannot reach {LEVEL:g}; "
        f"{math.ceil(1 - math.log2(LEVEL))} seeds can."
    )
