"""A reward for random weights, which answer nothing: the tokens decide a coin toss."""

from __future__ import annotations

from lit_rlvr.common.seeds import derive_seed
from lit_rlvr.rewards import Reward
from lit_rlvr.types import Completion, RewardResult, Sample


class Coin(Reward):
    """Rewards about half of all completions with 1, always the same ones."""

    def __init__(self) -> None:
        super().__init__(truncated_is_wrong=False)

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult:
        heads = derive_seed(*completion.token_ids) % 2 == 0
        return RewardResult(float(heads), heads)
