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
    """An environment's answer to a turn.

    Args:
        text: the text that the model sees next.
        done: True ends the episode; the model then does not see the text.
        calls, errors: numbers of tool calls in the turn, and of those that failed.
        images: PIL images that the model sees before the text; it must be a vision-language model.
    """

    text: str = ""
    done: bool = False
    calls: int = 0
    errors: int = 0
    images: tuple[Any, ...] = ()


class Environment(ABC):
    """One episode: the model writes a turn, the environment answers, until one of them ends it.

    Every completion has its own copy of the configured instance, in a worker process, where a crash, a hang or a leak
    affects only that completion. If the worker dies, another copy gets the same turns again, so all randomness must
    come from the sample or from Python's `random`, which the worker seeds before every call.

    Args:
        limits: limits on one call of `reset`, `step` or `reward`.
    """

    tools: Sequence[dict[str, Any]] = ()
    """JSON schemas of the tools that the prompt offers."""
    needs_turns: bool = False
    """True if an episode makes no sense with a single turn."""
    role: Literal["user", "tool"] = "user"
    """The chat role of its observations; `tool` for results of tool calls."""

    limits = Isolation()

    def __init__(self, limits: Isolation = Isolation()) -> None:  # noqa: B008  # frozen
        self.limits = limits

    source_classes: Sequence[type] = ()
    """Further classes whose code is part of its behaviour."""

    def reset(self, sample: Sample) -> str | None:
        """Begin an episode; return a text to append to the user's last message, or None.

        The text must depend on the sample alone, because all completions of a prompt share the prompt.
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
    def judges(self) -> bool:
        """True if it judges its episodes."""
        return type(self).reward is not Environment.reward


def environment_fingerprint(environment: Environment | None) -> str | None:
    """Return an environment's class name with a hash of its options and its code, for settings that must not change."""
    if environment is None:
        return None
    digest = hashlib.sha256(pickled(environment))
    for cls in (type(environment), *environment.source_classes):
        digest.update(inspect.getsource(cls).encode())
    names = [cls.__qualname__ for cls in (type(environment), *environment.source_classes)]
    return f"{' of '.join(names)} {digest.hexdigest()[:12]}"


def pickled(environment: Environment) -> bytes:
    """Pickle an environment for its workers.

    Raises:
        UserError: pickle refuses it.
    """
    return pickle_for_worker(
        environment,
        f"rollout.environment: {type(environment).__name__}",
        "define it at the top level of a module, without open files or nested functions",
    )
