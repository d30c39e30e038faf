"""The environment's own judgement of an episode as a reward."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lit_rlvr.environments.base import Environment
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward
from lit_rlvr.rewards.function import FunctionReward, as_rewards, parameters_of
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.types import Completion, RewardResult, Sample

_log = logging.getLogger("lit_rlvr")


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


class EnvironmentFunction(Reward):
    """A function that gets the environments of the episodes, as TRL's do: `(environments, **columns) -> list`.

    It runs at the end of each episode in the environment's worker process, with lists of one.

    Args:
        reward: the reward of a config that names the function.
    """

    def __init__(self, reward: FunctionReward) -> None:
        super().__init__(
            weight=reward.weight, correct_from=reward.correct_from, name=reward.name, truncated_is_wrong=False
        )
        self.function, self.dotted_path = reward.function, reward.dotted_path

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult | None:
        return completion.judged.get(self.name)


def gets_environments(reward: Reward) -> bool:
    """Return True for a function with an argument `environments`."""
    return isinstance(reward, FunctionReward) and "environments" in parameters_of(reward.function)


def rewards_with(environment: Environment | None, rewards: Sequence[Reward | str] | None) -> list[Reward]:
    """Return the rewards of a config, with the environment's own if it judges its episodes.

    Functions that get `environments` are left with the environment, whose worker calls them.

    Args:
        rewards: None = only the environment's, or `MathAnswer` if it has none.
    """
    judges = environment is not None and environment.judges
    if rewards is None:
        if environment is not None and not judges:
            _log.warning(
                "rollout.rewards: %s does not judge its episodes (it has no reward), so MathAnswer compares the last "
                "turn with the answer; give the rewards that you mean", environment.title,
            )  # fmt: skip
        return [EnvironmentReward() if judges else MathAnswer()]
    is_listed = any(isinstance(reward, EnvironmentReward) for reward in rewards)
    if is_listed and not judges:
        raise UserError("rollout.rewards: EnvironmentReward needs a rollout.environment that has a reward")
    made = as_rewards([*rewards, EnvironmentReward()] if judges and not is_listed else rewards)
    asking = [reward for reward in made if gets_environments(reward)]
    if asking and environment is None:
        raise UserError(
            f"rollout.rewards: {asking[0].dotted_path} gets `environments`, but there is no rollout.environment"
        )
    if environment is not None:
        environment.reward_functions = {reward.name: reward.function for reward in asking}  # type: ignore[attr-defined]
    return [EnvironmentFunction(reward) if reward in asking else reward for reward in made]  # type: ignore[arg-type]
