"""Base class of rewards whose checks run in worker processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from lit_rlvr.rewards.base import Reward
from lit_rlvr.rewards.process import Outcome
from lit_rlvr.types import Completion, Pair, RewardResult, Sample


class CheckedReward(Reward):
    """Checks a batch at once. With `truncated_is_wrong`, truncated completions are not checked."""

    @abstractmethod
    def check(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        """Judge the completions that need a check, in order."""

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        return self.score([(completion, sample)])[0]

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        results = [RewardResult(0.0, False, "ok", "cut off")] * len(pairs)
        judged = [i for i, (c, _) in enumerate(pairs) if not (self.truncated_is_wrong and c.truncated)]
        for i, result in zip(judged, self.check([pairs[i] for i in judged]), strict=True):
            results[i] = result
        return results


def verdict(outcome: Outcome) -> RewardResult:
    """The result of a check that returns (correct, status, detail): 1 or 0, without a verdict if the check failed."""
    correct, status, detail = outcome.value if outcome.status == "ok" else (False, outcome.status, outcome.detail)
    return RewardResult(float(correct), None if status == "error" else correct, status, detail)
