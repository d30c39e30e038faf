"""The errors of a verifier in numbers: rates with Wilson intervals, and what they do to GRPO's advantages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import torch

from lit_rlvr.advantages import GroupBatch, resolve_advantage

COMPUTED_GROUP_SIZE = 8
ACCURACIES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""True accuracies at which the error of advantages is computed."""


@dataclass(frozen=True)
class Rate:
    """A share of texts that a reward judges wrongly.

    Args:
        errors, texts: number of errors, and of texts.
    """

    errors: int
    texts: int

    @property
    def value(self) -> float:
        """The share; NaN without texts."""
        return self.errors / self.texts if self.texts else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927), which treats the texts as independent; (0, 1) without texts."""
        if not self.texts:
            return 0.0, 1.0
        z = NormalDist().inv_cdf(0.975)
        n, p = self.texts, self.value
        middle = p + z * z / (2 * n)
        spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((middle + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
        return (0.0 if self.errors == 0 else low), (1.0 if self.errors == n else high)

    def plus(self, is_error: bool) -> Rate:
        """Return the rate with one more text."""
        return Rate(self.errors + is_error, self.texts + 1)

    def document(self) -> dict[str, Any]:
        """Return the rate for `--json`."""
        low, high = self.interval
        return {"errors": self.errors, "texts": self.texts, "rate": self.value, "low": low, "high": high}


NO_TEXTS = Rate(0, 0)


@dataclass(frozen=True)
class AdvantageError:
    """The advantages of groups whose rewards are flipped, against those of the true rewards.

    Args:
        accuracy: share of completions that are truly right.
        correlation: of flipped and true advantages over all completions; NaN if the flipped ones are all 0.
        right, right_flipped: mean advantage of right completions, true and flipped.
        wrong, wrong_flipped: the same of wrong completions.
        no_signal, no_signal_flipped: share of groups with equal rewards.
    """

    accuracy: float
    correlation: float
    right: float
    right_flipped: float
    wrong: float
    wrong_flipped: float
    no_signal: float
    no_signal_flipped: float


def advantage_error(accuracy: float, false_negative: float, false_positive: float) -> AdvantageError:
    """Compute the error of GRPO's advantages in groups of `COMPUTED_GROUP_SIZE` by summing over all groups.

    Each completion is right with probability `accuracy`; a right one is paid with probability 1 - false_negative and a
    wrong one with false_positive (arXiv 2606.01066).
    """
    paid, unpaid = accuracy * (1 - false_negative), accuracy * false_negative
    gamed, refused = (1 - accuracy) * false_positive, (1 - accuracy) * (1 - false_positive)
    counts = product(range(COMPUTED_GROUP_SIZE + 1), repeat=4)
    groups = [split for split in counts if sum(split) == COMPUTED_GROUP_SIZE]
    weights = torch.tensor(
        [_multinomial(split, (paid, unpaid, gamed, refused)) for split in groups], dtype=torch.float64
    )  # (P,)
    true = torch.tensor([[1.0] * (a + b) + [0.0] * (c + d) for a, b, c, d in groups], dtype=torch.float64)  # (P, G)
    seen = torch.tensor(
        [[1.0] * a + [0.0] * b + [1.0] * c + [0.0] * d for a, b, c, d in groups], dtype=torch.float64
    )  # (P, G)
    grpo: Any = resolve_advantage("grpo")
    wanted, found = grpo(GroupBatch(true, true)), grpo(GroupBatch(seen, seen))

    def mean(values: torch.Tensor) -> float:
        return float((weights[:, None] * values).sum()) / COMPUTED_GROUP_SIZE

    size = math.sqrt(mean(wanted.square()) * mean(found.square()))
    flat = [float((weights * (rewards.amax(1) == rewards.amin(1))).sum()) for rewards in (true, seen)]
    return AdvantageError(
        accuracy=accuracy,
        correlation=mean(wanted * found) / size if size else math.nan,
        right=mean(wanted * true) / accuracy,
        right_flipped=mean(found * true) / accuracy,
        wrong=mean(wanted * (1 - true)) / (1 - accuracy),
        wrong_flipped=mean(found * (1 - true)) / (1 - accuracy),
        no_signal=flat[0],
        no_signal_flipped=flat[1],
    )


def _multinomial(counts: tuple[int, ...], probabilities: tuple[float, ...]) -> float:
    orders = math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))
    return orders * math.prod(p**k for p, k in zip(probabilities, counts, strict=True))
