"""The environment's own judgement of an episode as a reward."""

from __future__ import annotations

from collections.abc import Sequence

from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward, as_rewards
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.types import Completion, RewardResult, Sample


class EnvironmentReward(Reward):
    """What `Environment.reward` returned at the end of the episode.

    It is added with weight 1 when the environment judges its episodes; name it among the rewards to give it another
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
    """The rewards of a config, with the environment's own if it judges its episodes.

    Args:
        rewards: None = only the environment's, or `MathAnswer` if it has none.
    """
    judges = environment is not None and environment.judges
    if rewards is None:
        return [EnvironmentReward() if judges else MathAnswer()]
    named = any(isinstance(reward, EnvironmentReward) for reward in rewards)
    if named and not judges:
        raise UserError("rollout.rewards: EnvironmentReward needs a rollout.environment that has a reward")
    return as_rewards([*rewards, EnvironmentReward()] if judges and not named else rewards)
