"""The base class of environments, which answer a model that acts in turns, and their judgement as a reward."""

from __future__ import annotations

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_rlvr.common.log import log
from lit_rlvr.errors import UserError
from lit_rlvr.rewards.base import Reward
from lit_rlvr.rewards.forms import parameters_of
from lit_rlvr.rewards.function import FunctionReward, as_rewards
from lit_rlvr.rewards.math import MathAnswer
from lit_rlvr.types import TURN_REWARDS, Completion, RewardResult, Sample, ToolResult, Turn
from lit_rlvr.workers.process import Isolation, pickle_for_worker

Opening = str | list[dict[str, Any]] | None
"""What an environment says first: a text or content blocks for the user's last message, or messages."""


@dataclass(frozen=True)
class Observation:
    """An environment's answer to a turn.

    Args:
        text: the text that the model sees next.
        done: True ends the episode; the model then does not see the text.
        calls, errors: numbers of tool calls in the turn, and of those that failed.
        images: PIL images that the model sees before the text; it must be a vision-language model.
        results: the results of tool calls, one message each; they take the place of `text` and `images`.
        reward: the reward of the turn, from an environment with `rewards_turns`; None = it has none.
    """

    text: str = ""
    done: bool = False
    calls: int = 0
    errors: int = 0
    images: tuple[Any, ...] = ()
    results: tuple[ToolResult, ...] = ()
    reward: float | None = None

    def __post_init__(self) -> None:
        if self.results:
            object.__setattr__(self, "text", "\n".join(result.text for result in self.results))
            images: list[Any] = []
            for result in self.results:
                images += result.images
            object.__setattr__(self, "images", tuple(images))


class Environment(ABC):
    """One episode: the model writes a turn, the environment answers, until one of them ends it.

    Every completion has its own copy of the configured instance, in a worker process, where a crash, a hang or a leak
    affects only that completion. If the worker dies, another copy gets the same turns again, so all randomness must
    come from the sample or from Python's `random`, which the worker seeds before every call.

    Example:
        ```python
        from lit_rlvr import Environment, Observation


        class GuessAgain(Environment):
            def reset(self, sample):
                self.answer = sample.answer
                self.guessed = False

            def step(self, turn):
                self.guessed = turn.text.strip() == self.answer
                return Observation("Guess again.", done=self.guessed)

            def reward(self):
                return self.guessed
        ```

    Args:
        limits: limits on one call of `reset`, `step` or `reward`.

    Attributes:
        tools: JSON schemas of the tools that the prompt offers.
        needs_turns: True if an episode makes no sense with a single turn.
        rewards_turns: True if `step` gives rewards to turns.
        takes_row_templates: True if rows may have `chat_template_kwargs` of their own.
        role: the chat role of its observations; `tool` for results of tool calls.
        source_classes: further classes whose code is part of its behaviour.
        reward_functions: functions by name that judge the episode at its end; `rewards_with` fills them in.
    """

    tools: Sequence[dict[str, Any]] = ()
    needs_turns: bool = False
    rewards_turns: bool = False
    takes_row_templates: bool = False
    role: Literal["user", "tool"] = "user"

    limits = Isolation()
    source_classes: Sequence[type] = ()
    reward_functions: Mapping[str, Callable[..., Any]] = {}

    def __init__(self, limits: Isolation = Isolation()) -> None:  # noqa: B008  # frozen
        self.limits = limits

    @property
    def title(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    @property
    def holder(self) -> object:
        """The object that reward functions get as one of their `environments`."""
        return self

    def tools_of(self, sample: Sample) -> Sequence[dict[str, Any]]:
        """Return the tools that a sample's prompt offers."""
        return self.tools

    @property
    def begins(self) -> bool:
        """True if it may say something before the first turn."""
        return type(self).reset is not Environment.reset

    def reset(self, sample: Sample) -> Opening:
        """Begin an episode; return what the model sees first, or None.

        A text or content blocks extend the user's last message, messages follow the prompt. Python's `random` is seeded
        with the sample's id, so that the completions of a prompt begin alike.
        """
        return None

    @abstractmethod
    def step(self, turn: Turn) -> Observation:
        """Answer a turn."""

    def reward(self) -> float | bool | RewardResult | None:
        """Return the reward of the episode; called once at its end.

        True, False and numbers also set `correct`, which is true for True and for 1. None means that the environment
        does not judge this episode: other rewards decide, and without any the loss masks it out.
        """
        return None

    @property
    def has_reward(self) -> bool:
        """True if it judges its episodes."""
        return type(self).reward is not Environment.reward


def environment_fingerprint(environment: Environment | None) -> str | None:
    """Return an environment's class name with a hash of its options and its code, for settings that must not change."""
    if environment is None:
        return None
    digest = hashlib.sha256(pickled(environment))
    classes = []
    for cls in type(environment).__mro__:
        if cls not in (ABC, object):
            classes.append(cls)
    for cls in (*classes, *environment.source_classes):
        digest.update(inspect.getsource(cls).encode())
    names = []
    for cls in (type(environment), *environment.source_classes):
        names.append(cls.__qualname__)
    return f"{' of '.join(names)} {digest.hexdigest()[:12]}"


def pickled(environment: Environment) -> bytes:
    """Pickle an environment for its workers.

    Raises:
        UserError: pickle refuses it.
    """
    return pickle_for_worker(
        environment,
        f"rollout.environment: {environment.title}",
        "define it at the top level of a module, without open files or nested functions",
    )


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


class TurnRewards(Reward):
    """The sum of the rewards that an environment gave to the turns of an episode.

    A run adds it with weight 1 if the environment rewards turns; list it among the rewards to give it another weight.

    Args:
        weight: factor of this reward in the weighted sum, and of each turn's reward.
    """

    reports_correct = False
    needs_answer = False

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight=weight, name=TURN_REWARDS, truncated_is_wrong=False)

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult | None:
        given = []
        for turn in completion.turns:
            if turn.reward is not None:
                given.append(turn.reward)
        if not given:
            return None
        return RewardResult(math.fsum(given), None)


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
        self.function = reward.function

    def __call__(self, completion: Completion, sample: Sample) -> RewardResult | None:
        return completion.reward_results.get(self.name)


def rewards_with(environment: Environment | None, rewards: Sequence[Reward | str] | None) -> list[Reward]:
    """Return the rewards of a config, with the environment's own if it judges its episodes.

    Functions that get `environments` are left with the environment, whose worker calls them.

    Args:
        environment: the run's environment, if it has one.
        rewards: rewards and their names; None = only the environment's, or `MathAnswer` if it has none.
    """
    has_reward = environment is not None and environment.has_reward
    rewards_turns = environment is not None and environment.rewards_turns
    own: list[type[Reward]] = []
    if has_reward:
        own.append(EnvironmentReward)
    if rewards_turns:
        own.append(TurnRewards)
    if rewards is None:
        if environment is not None and not own:
            log.warning(
                "rollout.rewards: %s does not judge its episodes (it has no reward), so MathAnswer compares the last "
                "turn with the answer; give the rewards that you mean",
                environment.title,
            )
        return [kind() for kind in own] or [MathAnswer()]
    listed = {type(reward) for reward in rewards}
    if EnvironmentReward in listed and not has_reward:
        raise UserError("rollout.rewards: EnvironmentReward needs a rollout.environment that has a reward")
    if TurnRewards in listed and not rewards_turns:
        raise UserError("rollout.rewards: TurnRewards needs a rollout.environment with rewards_turns = True")
    added = []
    for kind in own:
        if kind not in listed:
            added.append(kind())
    built = as_rewards([*rewards, *added])
    functions = [reward for reward in built if isinstance(reward, FunctionReward)]
    asking = [reward for reward in functions if "environments" in parameters_of(reward.function)]
    if asking and environment is None:
        raise UserError(
            f"rollout.rewards: {asking[0].dotted_path} gets `environments`, but there is no rollout.environment"
        )
    if environment is not None:
        environment.reward_functions = {reward.name: reward.function for reward in asking}
    return [EnvironmentFunction(reward) if reward in asking else reward for reward in built]
