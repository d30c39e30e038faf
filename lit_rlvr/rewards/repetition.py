"""The penalty of repeated n-grams."""

from __future__ import annotations

from typing import Any

from lit_rlvr.common.arguments import check_within
from lit_rlvr.rewards.base import Reward
from lit_rlvr.types import Completion, Sample


class RepetitionPenalty(Reward):
    """Minus the share of a completion's n-grams that repeat an earlier one: 0 without repetition, towards -1 in a loop.

    The n-grams are those of the sampled token ids, so no tokenizer is needed; of an episode, those within a turn. A
    long text repeats short n-grams in any case. Source: Yeo et al. 2025 (demystifying long CoT, arXiv 2502.03373),
    appendix C.2; TRL's get_repetition_penalty_reward. It does not report `correct`.

    Args:
        ngram_size: n, in tokens.
        kwargs: `weight`, `correct_from` and `name` of every reward.
    """

    reports_correct = False
    needs_answer = False

    def __init__(self, ngram_size: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_within("[1, inf)", "rewards.RepetitionPenalty", ngram_size=ngram_size)
        self.ngram_size = ngram_size

    def __call__(self, completion: Completion, sample: Sample) -> float:
        tokens = zip(completion.token_ids, completion.from_model, strict=True)
        ids = []
        for token, is_sampled in tokens:
            ids.append(token if is_sampled else None)
        starts = range(len(ids) - self.ngram_size + 1)
        ngrams = []
        for i in starts:
            ngram = tuple(ids[i : i + self.ngram_size])
            if None not in ngram:
                ngrams.append(ngram)
        if ngrams:
            return len(set(ngrams)) / len(ngrams) - 1
        return 0.0
