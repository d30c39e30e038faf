"""The rule of verdict on claimed differences: sign flips over paired seeds, corrected by Holm over the claims. Pure.

| verdict | meaning |
|---|---|
| seen | the claimed sign, and corrected p < 0.05 |
| not seen | the other sign, and corrected p < 0.05 |
| smaller than printed | enough pairs, no sign could be told, but a difference as large as the printed one is rejected |
| cannot tell | anything else |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import isnan
from statistics import mean, stdev

from lit_rlvr.commands.compare.significance import (
    LEVEL,
    detectable,
    holm,
    least_pairs,
    sign_flip_test,
    smaller_test,
    t_interval,
)

SMALLER_THAN_PRINTED = "smaller than printed"


@dataclass(frozen=True)
class PairedDifference:
    """A claimed difference over paired seeds, tested.

    Args:
        more: mean of the cell that is claimed to have more, over seeds.
        less: mean of the other.
        differences: one per seed.
        p: p-value of the sign-flip test.
        adjusted: p after Holm's correction over all differences that are tested together.
        below: one-sided p-value of the true difference being at least the printed one, after Holm's correction over
            those with a printed difference; None without one, or with a single seed.
        needed: the fewest pairs with which sign flips can reach the level after that correction.
    """

    more: float
    less: float
    differences: list[float]
    p: float
    adjusted: float
    below: float | None
    needed: int

    @property
    def n(self) -> int:
        """The number of pairs."""
        return len(self.differences)

    @property
    def difference(self) -> float:
        """The mean difference over the pairs."""
        return mean(self.differences)

    @property
    def interval(self) -> list[float]:
        """The 95 % interval of the mean difference, by Student's t over seeds; empty for a single seed."""
        return t_interval(self.differences) or []

    @property
    def could_show(self) -> float | None:
        """The smallest difference that as many pairs show with probability `POWER`.

        It holds for a single t-test, before the correction; None with fewer pairs than needed.
        """
        if self.n >= self.needed:
            return detectable(self.n) * stdev(self.differences)
        return None

    @property
    def verdict(self) -> str:
        """The verdict by sign flips alone."""
        if self.adjusted >= LEVEL:
            return "cannot tell"
        if self.difference > 0:
            return "seen"
        return "not seen"

    @property
    def reading(self) -> str:
        """Verdict as the tables print it.

        If sign flips cannot tell although there are enough pairs, the t-test against the printed difference decides.
        """
        is_smaller = self.below is not None and self.below < LEVEL and self.n >= self.needed
        if is_smaller and self.verdict == "cannot tell":
            return SMALLER_THAN_PRINTED
        return self.verdict


def paired_differences(
    pairs: Sequence[Sequence[tuple[float, float]]], printed: Sequence[float | None]
) -> list[PairedDifference | None]:
    """Test claimed differences together, and correct for their number.

    Args:
        pairs: for each claim, the values of the two cells in every seed that has both; never NaN.
        printed: for each claim, the difference that the paper prints, in the same unit; None = it prints none.

    Returns:
        None for a claim without pairs, which counts in the correction all the same.
    """
    differences = []
    for values in pairs:
        differences.append([higher - lower for higher, lower in values])
    assert not any(map(isnan, chain(*differences))), "NaN would give p = 0"
    raw = [sign_flip_test(values) for values in differences]
    adjusted = holm([1.0 if p is None else p for p in raw])
    sized = {}
    for k, size in enumerate(printed):
        if size is not None and len(differences[k]) > 1:
            sized[k] = size
    below = dict(zip(sized, holm([smaller_test(differences[k], size) for k, size in sized.items()]), strict=True))
    tested: list[PairedDifference | None] = []
    for k, (values, p) in enumerate(zip(pairs, raw, strict=True)):
        if p is None:
            tested.append(None)
            continue
        more = mean(higher for higher, _ in values)
        less = mean(lower for _, lower in values)
        least = least_pairs(len(pairs))
        tested.append(PairedDifference(more, less, differences[k], p, adjusted[k], below.get(k), least))
    return tested
