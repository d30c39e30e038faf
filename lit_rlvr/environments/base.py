"""The base class of environments: the model acts in turns, and the environment answers."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_rlvr.types import RewardResult, Sample, Turn
from lit_rlvr.workers.process import Isolation, pickle_for_worker


@dataclass(frozen=True)
class Observation:
    """What an environment answers to a turn.

    Args:
        text: what the model sees next.
        done: whether the episode is over; the text is then not shown.
        calls, errors: tool calls in the turn, and how many of them failed.
        images: PIL images that the model sees before the text; it must be a vision-language model.
    """

    text: str = ""
    done: bool = False
    calls: int = 0
    errors: int = 0
    images: tuple[Any, ...] = ()


class Environment(ABC):
    """One episode: the model writes a turn, the environment answers, until one of them ends it.

    Every completion has an instance of its own, a copy of the configured one. It lives in a worker process, where a
    crash, a hang or a leak affects only that completion. If its worker is lost, another copy is given the same turns
    again, so all its randomness must come from the sample or from Python's `random`, which is seeded before every call.

    Args:
        limits: limits on one call of `reset`, `step` or `reward`.
    """

    tools: Sequence[dict[str, Any]] = ()
    """JSON schemas of the tools that the prompt offers."""
    needs_turns: bool = False
    """Whether a single turn would be pointless."""
    role: Literal["user", "tool"] = "user"
    """Whose messages its observations are in the model's chat template; `tool` for results of tool calls."""

    limits = Isolation()

    def __init__(self, limits: Isolation = Isolation()) -> None:  # noqa: B008  # frozen
        self.limits = limits

    made_of: Sequence[type] = ()
    """Further classes that decide what it does."""

    def reset(self, sample: Sample) -> str | None:
        """Begin an episode. A text is appended to the user's last message.

        It must depend on the sample alone, because all completions of a prompt share the prompt.
        """
        return None

    @abstractmethod
    def step(self, turn: Turn) -> Observation:
        """Answer a turn."""

    def reward(self) -> float | bool | RewardResult | None:
        """The reward of the episode, asked for once at its end.

        True and False, and a number that is 1, also mean that the answer is correct. None means that the environment
        does not judge this episode: other rewards decide, and without any it is masked out of the loss.
        """
        return None

    @property
    def judges(self) -> bool:
        """Whether it judges its episodes."""
        return type(self).reward is not Environment.reward


def named(environment: Environment | None) -> str | None:
    """An environment with a hash of its options and its code, for settings that must not change."""
    if environment is None:
        return None
    digest = hashlib.sha256(pickled(environment))
    for cls in (type(environment), *environment.made_of):
        digest.update(inspect.getsource(cls).encode())
    names = [cls.__qualname__ for cls in (type(environment), *environment.made_of)]
    return f"{' of '.join(names)} {digest.hexdigest()[:12]}"


def pickled(environment: Environment) -> bytes:
    """Pickle an environment for its workers.

    Raises:
        UserError: it cannot be pickled.
    """
    return pickle_for_worker(
        environment,
        f"rollout.environment: {type(environment).__name__}",
        "define it at the top level of a module, without open files or nested functions",
    )
