"""Rewards that depend on how long a completion is, in tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.columns import lookup, single
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward, groups_of
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.types import Completion, Pair, RewardResult, Sample
from lit_rlvr.workers.pool import shared_pool


class Overlong(Reward):
    """DAPO's soft punishment: 0 up to `max_tokens - cache_tokens`, then falling linearly to -1 at `max_tokens`.

    Source: Yu et al. 2025 (DAPO), eq. 13. DAPO's task reward is +-1; with a 0/1 reward this has twice the weight.

    Args:
        max_tokens: L_max, the length at which the punishment reaches -1.
        cache_tokens: L_cache, the length of the slope; 0 = -1 from `max_tokens` + 1 on, 0 before.
        kwargs: `weight`, `correct_from` and `name` of every reward.

    Raises:
        UserError: `cache_tokens` is not in [0, max_tokens].
    """

    reports_correct = False
    needs_answer = False

    def __init__(self, max_tokens: int, cache_tokens: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= cache_tokens <= max_tokens:
            raise UserError(f"rewards.Overlong.cache_tokens: {cache_tokens} must lie in [0, max_tokens={max_tokens}]")
        self.max_tokens = max_tokens
        self.cache_tokens = cache_tokens
        self.assumed_max_tokens = max_tokens

    def __call__(self, completion: Completion, sample: Sample) -> float:
        over = completion.length - (self.max_tokens - self.cache_tokens)
        return -min(max(over / max(self.cache_tokens, 1), 0.0), 1.0)


def without_unreadable(
    results: Sequence[RewardResult], pairs: Sequence[Pair], cpu_seconds: float
) -> list[RewardResult]:
    """Return results with "unjudged" where the reference is no mathematics: nothing tells which answers are wrong.

    Args:
        results: the result of each pair.
        pairs: completions with their samples.
        cpu_seconds: CPU time in which a reference must be read.
    """
    references = list(dict.fromkeys(sample.references for _, sample in pairs))
    answers = list(dict.fromkeys(chain.from_iterable(references)))
    outcomes = shared_pool().run(
        "lit_rlvr.answers.verdict:is_readable", [(a,) for a in answers], cpu_seconds=cpu_seconds
    )
    unreadable = set()
    for a, outcome in zip(answers, outcomes, strict=True):
        if outcome.value is False:
            unreadable.add(a)
    kept = []
    for result, (_, sample) in zip(results, pairs, strict=True):
        if unreadable.issuperset(sample.references):
            result = RewardResult(0.0, None, "unjudged", f"the reference {sample.answer!r} cannot be read")
        kept.append(result)
    return kept


class CosineScaled(MathAnswer):
    """A reward by which right answers earn more when short, and wrong ones lose less when long.

    A right answer's reward falls along half a cosine from `max_correct` at length 0 to `min_correct` at `max_length`; a
    wrong one's goes from `min_wrong` to `max_wrong`. Source: AAPO, eqs. 9-10; lengths beyond `max_length` count as
    `max_length`, where the released code is periodic. An answer that cannot be parsed counts as wrong. Completions
    whose reference cannot be parsed are not judged, because nothing tells which of them are wrong.

    Args:
        max_length: L, in tokens.
        min_correct: alpha_min^c, a right answer's reward at `max_length`.
        max_correct: alpha_max^c, a right answer's reward at length 0.
        min_wrong: alpha_min^w, a wrong answer's reward at length 0.
        max_wrong: alpha_max^w, a wrong answer's reward at `max_length`.
        kwargs: the options of `MathAnswer` and of every reward.
    """

    def __init__(
        self,
        max_length: int,
        min_correct: float = 0.5,
        max_correct: float = 1.0,
        min_wrong: float = -0.5,
        max_wrong: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_within("[1, inf)", "rewards.CosineScaled", max_length=max_length)
        self.max_length = self.assumed_max_tokens = max_length
        self.ends = {True: (max_correct, min_correct), False: (min_wrong, max_wrong)}

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        results = without_unreadable(super().score(pairs), pairs, self.cpu_seconds)
        for k, (result, (completion, _)) in enumerate(zip(results, pairs, strict=True)):
            if result.status != "unjudged":
                results[k] = self._scaled(result, completion)
        return results

    def _scaled(self, result: RewardResult, completion: Completion) -> RewardResult:
        if result.status == "error":
            return result
        start, end = self.ends[bool(result.correct)]
        share = min(completion.length / self.max_length, 1.0)
        return replace(result, value=end + 0.5 * (start - end) * (1 + math.cos(math.pi * share)))


class LCPO(MathAnswer):
    """A reward for right answers of the length that the prompt asks for: L1's length-controlled policy optimization.

    LCPO-exact: `r - alpha |n_gold - n|`, r = 1 for a right answer and 0 for a wrong one, n its length in tokens.
    LCPO-max: `r clip(alpha (n_gold - n) + delta, 0, 1)`, which lets an answer be shorter. The prompt has to name the
    length. Completions whose reference cannot be parsed are not judged.
    Source: Aggarwal & Welleck 2025 (L1, arXiv 2503.04697).

    Args:
        target: n_gold in tokens, or the name of the data's column with each prompt's, perhaps nested
            (`metadata.tokens`).
        alpha: weight of a token of difference.
        delta: null: LCPO-exact; a number: LCPO-max with it (the paper uses 0.5), the share of r at a length of n_gold.
        kwargs: the options of `MathAnswer` and of every reward.
    """

    def __init__(
        self, target: int | str = "num_tokens", alpha: float = 0.0003, delta: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_within("[0, inf)", "rewards.LCPO", alpha=alpha)
        check_within("[0, 1]", "rewards.LCPO", delta=delta)
        if not isinstance(target, str):
            check_within("[1, inf)", "rewards.LCPO", target=target)
        self.target = target
        self.alpha = alpha
        self.delta = delta

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        targets = []
        for _, sample in pairs:
            targets.append(self._target(sample))
        results = without_unreadable(super().score(pairs), pairs, self.cpu_seconds)
        for k, (result, target) in enumerate(zip(results, targets, strict=True)):
            if result.status not in ("error", "unjudged"):
                results[k] = replace(result, value=self._value(result, target - pairs[k][0].length))
        return results

    def check_reference(self, sample: Sample) -> None:
        self._target(sample)

    def _value(self, result: RewardResult, left: float) -> float:
        right = float(bool(result.correct))
        if self.delta is None:
            return right - self.alpha * abs(left)
        return right * min(max(self.alpha * left + self.delta, 0.0), 1.0)

    def _target(self, sample: Sample) -> float:
        if not isinstance(self.target, str):
            return self.target
        given = single(lookup(sample.row, self.target))
        try:
            target = float(given)
        except (TypeError, ValueError, OverflowError):
            target = math.nan
        if isinstance(given, bool) or not 1 <= target < math.inf:
            raise UserError(
                f"rewards.LCPO.target: {sample.source or sample.id} has no number of tokens in the column "
                f"{self.target!r}; name the column with the length that the prompt asks for, or give one number for all"
            )
        return target


class RelativeLength(MathAnswer):
    """Kimi k1.5's reward: the shortest right answers of a group earn most, and long wrong ones lose.

    `r + length_weight * lambda`, r = 1 for a right answer and 0 for a wrong one, with
    `lambda = 0.5 - (n - n_min) / (n_max - n_min)` for a completion of n tokens among the group's; a wrong answer gets
    min(0, lambda), and all get 0 if they are equally long. Completions whose check failed
    or whose reference cannot be parsed are left out.
    Source: Kimi Team 2025 (Kimi k1.5, arXiv 2501.12599), section 2.3.3, which starts training without it.

    Args:
        length_weight: weight of the length against that of a right answer.
        kwargs: the options of `MathAnswer` and of every reward.
    """

    compares = True

    def __init__(self, length_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_within("[0, inf)", "rewards.RelativeLength", length_weight=length_weight)
        self.length_weight = length_weight

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        """Judge a batch of whole groups, in order."""
        results = without_unreadable(super().score(pairs), pairs, self.cpu_seconds)
        for group in groups_of(pairs):
            judged = []
            for k in group:
                if results[k].status not in ("error", "unjudged"):
                    judged.append(k)
            lengths = []
            for k in judged:
                lengths.append(pairs[k][0].length)
            for k, length in zip(judged, lengths, strict=True):
                results[k] = self._shaped(results[k], length, lengths)
        return results

    def _shaped(self, result: RewardResult, length: int, lengths: Sequence[int]) -> RewardResult:
        shortest = min(lengths)
        longest = max(lengths)
        if longest > shortest:
            share = 0.5 - (length - shortest) / (longest - shortest)
        else:
            share = 0.0
        share = share if result.correct else min(share, 0.0)
        return replace(result, value=float(bool(result.correct)) + self.length_weight * share)
