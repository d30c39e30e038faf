"""Rewards that depend on how long a completion is, in tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lit_rlvr.errors import UserError, check_within
from lit_rlvr.rewards.base import Reward
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.types import Completion, RewardResult, Sample
from lit_rlvr.workers.pool import shared_pool

IS_READABLE = "lit_rlvr.rewards.math_check:is_readable"


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

    def __init__(self, max_tokens: int, cache_tokens: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= cache_tokens <= max_tokens:
            raise UserError(f"rewards.Overlong.cache_tokens: {cache_tokens} must lie in [0, max_tokens={max_tokens}]")
        self.max_tokens, self.cache_tokens = max_tokens, cache_tokens

    def __call__(self, completion: Completion, sample: Sample) -> float:
        over = completion.length - (self.max_tokens - self.cache_tokens)
        return -min(max(over / max(self.cache_tokens, 1), 0.0), 1.0)


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
        self.max_length = max_length
        self.ends = {True: (max_correct, min_correct), False: (min_wrong, max_wrong)}

    def score(self, pairs: Sequence[tuple[Completion, Sample]]) -> list[RewardResult]:
        judged = super().score(pairs)
        answers = list(dict.fromkeys(sample.answer for _, sample in pairs))
        outcomes = shared_pool().run(IS_READABLE, [(answer,) for answer in answers], cpu_seconds=self.cpu_seconds)
        unreadable = {a for a, outcome in zip(answers, outcomes, strict=True) if outcome.value is False}
        return [
            RewardResult(0.0, None, "unjudged", f"the reference {sample.answer!r} cannot be read")
            if sample.answer in unreadable
            else self._scaled(result, completion)
            for result, (completion, sample) in zip(judged, pairs, strict=True)
        ]

    def _scaled(self, result: RewardResult, completion: Completion) -> RewardResult:
        if result.status == "error":
            return result
        start, end = self.ends[bool(result.correct)]
        share = min(completion.length / self.max_length, 1.0)
        return replace(result, value=end + 0.5 * (start - end) * (1 + math.cos(math.pi * share)))
