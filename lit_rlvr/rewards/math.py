"""The reward of mathematical answers, which worker processes compare with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlvr.common.packages import require
from lit_rlvr.rewards.base import CheckedReward, verdict
from lit_rlvr.types import Completion, Pair, RewardResult, Sample
from lit_rlvr.workers.pool import shared_pool
from lit_rlvr.workers.process import Outcome


class MathAnswer(CheckedReward):
    """A reward of 1 for a completion whose final answer equals one of the sample's references, else 0.

    It reports `correct`. The page on answers says which answer is the final one and when two are equal. Status
    "parse_fail" means that there is no answer, and "timeout" that the check hit its limits: both are wrong.

    Args:
        boxed_only: only the last `\\boxed{}` counts as an answer.
        decimals: decimal places to which a number written as a decimal must agree, whole numbers and fractions alike; a
            number below 1 to as many significant digits. 2 for MathVision.
        reference_precision: a number that rounds to the reference's decimals is right too: 7/3 for 2.33.
        open_thoughts: thoughts that never end (`<think>` without `</think>`) may hold the answer.
        cpu_seconds: CPU time of one check.
        second_opinion: ask Math-Verify about answers that this check calls wrong. What it calls right is paid, and is
            marked as disputed: `reward/<name>/disputed`, and `disputed` among the criteria in completions.jsonl.
        kwargs: `weight`, `correct_from`, `name` and `truncated_is_wrong` of every reward.
    """

    def __init__(
        self,
        boxed_only: bool = False,
        decimals: int = 6,
        reference_precision: bool = False,
        open_thoughts: bool = False,
        cpu_seconds: float = 2.0,
        second_opinion: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = boxed_only, decimals, reference_precision, open_thoughts
        self.cpu_seconds = cpu_seconds
        self.second_opinion = second_opinion
        if second_opinion:
            require("math_verify", "rewards.MathAnswer.second_opinion", "math-verify>=0.9,<0.10")

    def gold_completion(self, sample: Sample) -> str:
        return f"\\boxed{{{sample.answer}}}"

    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        results = []
        for outcome in self._run("check", pairs):
            results.append(verdict(outcome))
        if self.second_opinion:
            return self._asked_again(results, pairs)
        return results

    def explain(self, completion: Completion, sample: Sample) -> list[tuple[str, str]]:
        """Return (stage, result) of each stage of the check of one completion."""
        (outcome,) = self._run("explain_check", [(completion, sample)])
        if outcome.status != "ok":
            return [(outcome.status, outcome.detail)]
        stages: list[tuple[str, str]] = outcome.value
        if self.second_opinion:
            (result,) = self.check([(completion, sample)])
            stages.append(("second opinion", "right, so disputed" if result.criteria else "not asked, or wrong too"))
        return stages

    def _asked_again(self, results: list[RewardResult], pairs: Sequence[Pair]) -> list[RewardResult]:
        """Return results in which answers that Math-Verify calls right, against this check, are right and disputed."""
        wrong = []
        for k, result in enumerate(results):
            if result.correct is False and result.status != "timeout":
                wrong.append(k)
        outcomes = self._run("second_opinion", [pairs[k] for k in wrong])
        disputed = set()
        for k, outcome in zip(wrong, outcomes, strict=True):
            if outcome.value is True:
                disputed.add(k)
        for k, result in enumerate(results):
            self.metrics.setdefault(f"{self.name}/disputed", []).append(float(k in disputed))
            if k in disputed:
                results[k] = RewardResult(1.0, True, "ok", result.detail, {"disputed": 1.0})
        return results

    def _run(self, check: str, pairs: Sequence[Pair]) -> list[Outcome]:
        """Run a function of `lit_rlvr.answers.verdict` on completions in worker processes."""
        arguments = []
        for completion, sample in pairs:
            arguments.append((completion.full_text, sample.references, *self.options))
        return shared_pool().run(f"lit_rlvr.answers.verdict:{check}", arguments, cpu_seconds=self.cpu_seconds)
