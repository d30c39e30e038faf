"""The environment's own judgement of an episode as a reward."""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward
from lit_rlvr.rewards.function import as_rewards
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.types import Completion, RewardResult, Sample


class EnvironmentReward(Reward):
    """The result of `Environment.reward` at the end of the episode.

    A run adds it with weight 1 if the environment judges its episodes; list it among the rewards to give it another
    weight, or to take `correct` from it.

    Args:
        weight: factor of this reward in the weighted sum.
        correct_from: take `correct` from the environment, also if another reward reports it.
        name: its name in metrics.
    """

    def __init__(self, weight: float = 1.0, correct_from: bool = False, name: str | None = "environment") -> None:
        super().__init__(weight=weight, correct_from=correct_from, name=name, truncated_is_wrong=False)

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult | None:
        return completion.outcome


def rewards_with(environment: Environment | None, rewards: Sequence[Reward | str] | None) -> list[Reward]:
    """Return the rewards of a config, with the environment's own if it judges its episodes.

    Args:
        rewards: None = only the environment's, or `MathAnswer` if it has none.
    """
    judges = environment is not None and environment.judges
    if rewards is None:
        return [EnvironmentReward() if judges else MathAnswer()]
    is_listed = any(isinstance(reward, EnvironmentReward) for reward in rewards)
    if is_listed and not judges:
        raise UserError("rollout.rewards: EnvironmentReward needs a rollout.environment that has a reward")
    return as_rewards([*rewards, EnvironmentReward()] if judges and not is_listed else rewards)
