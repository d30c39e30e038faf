"""The reward of mathematical answers, which math-verify compares with the reference in worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlvr.rewards.base import CheckedReward, verdict
from lit_rlvr.types import Pair, RewardResult, Sample
from lit_rlvr.workers.pool import shared_pool

MATH_CHECK = "lit_rlvr.rewards.math_check:check_math"


class MathAnswer(CheckedReward):
    """A reward of 1 for a completion whose final answer equals `sample.answer`, else 0; it reports `correct`.

    `lit_rlvr.rewards.math_check.check_math` defines which answer is the final one. Status "parse_fail" means that
    there is no answer, and "timeout" that the check hit its limits: both are wrong.

    Args:
        boxed_only: only the last `\\boxed{}` counts as an answer.
        decimals: decimal places to which numbers must agree; 2 for MathVision.
        cpu_seconds: CPU time of one check.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    def __init__(
        self,
        boxed_only: bool = False,
        decimals: int = 6,
        cpu_seconds: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.boxed_only = boxed_only
        self.decimals = decimals
        self.cpu_seconds = cpu_seconds

    def gold_completion(self, sample: Sample) -> str:
        return f"\\boxed{{{sample.answer}}}"

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        arguments = [(c.text, sample.answer, self.boxed_only, self.decimals) for c, sample in pairs]
        return [verdict(outcome) for outcome in shared_pool().run(MATH_CHECK, arguments, cpu_seconds=self.cpu_seconds)]
