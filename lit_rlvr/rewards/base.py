"""What a reward is: a callable on (completion, sample), scored in batches."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lit_rlvr.errors import UserError
from lit_rlvr.types import Completion, RewardResult, Sample

Pair = tuple[Completion, Sample]


class Reward(ABC):
    """Judges one completion; subclasses pass `**kwargs` on to here.

    Args:
        weight: factor of this reward in the weighted sum.
        correct_from: take `correct` (accuracy, pass@k) from this reward. Without a mark it comes
            from the first reward that reports it.
        name: how metrics call it (`reward/<name>`). Default: the class name in snake case.

    Raises:
        UserError: the weight is not a finite number.
    """

    def __init__(self, weight: float = 1.0, correct_from: bool = False, name: str | None = None) -> None:
        if not math.isfinite(weight):
            raise UserError(f"rewards.{type(self).__name__}.weight must be a finite number, got {weight}")
        self.weight = weight
        self.correct_from = correct_from
        self.name = name or snake_case(type(self).__name__)

    @abstractmethod
    def __call__(self, completion: Completion, sample: Sample) -> float | RewardResult:
        """The reward of one completion; a plain number says nothing about `correct`."""

    def score(self, pairs: Sequence[Pair]) -> list[RewardResult]:
        """Judge a batch, in order. Rewards that run in worker processes override this.

        An exception of the checker becomes status "error" for that completion alone, which masks it
        out of the loss. A `UserError` is about the configuration, so it ends the run.
        """
        return [self._judge(completion, sample) for completion, sample in pairs]

    def _judge(self, completion: Completion, sample: Sample) -> RewardResult:
        try:
            return as_result(self(completion, sample))
        except UserError:
            raise
        except Exception as error:
            return RewardResult(0.0, None, "error", f"{type(error).__name__}: {error}")

    def close(self) -> None:  # noqa: B027 (optional)
        """Release what the reward holds; nothing by default."""


class FunctionReward(Reward):
    """A plain function `(completion, sample) -> float | RewardResult` as a reward.

    Args:
        path: where the function is, `module.function`; modules of the current directory work.
        kwargs: `weight`, `correct_from` and `name` of every reward; the default name is the
            function's.

    Raises:
        UserError: the function cannot be imported; the message says which import failed.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        module, _, function = path.rpartition(".")
        if not module:
            raise UserError(f"rewards.FunctionReward.path must be module.function, got {path!r}")
        try:
            self.function = getattr(import_module(module), function)
        except (ImportError, SyntaxError) as error:
            raise UserError(f"rewards.FunctionReward.path {path!r}: importing {module!r} failed: {error}") from error
        except AttributeError as error:
            raise UserError(f"rewards.FunctionReward.path {path!r}: {error}") from error
        if not callable(self.function):
            raise UserError(f"rewards.FunctionReward.path {path!r} is not callable")
        if kwargs.get("name") is None:
            self.name = function

    def __call__(self, completion: Completion, sample: Sample) -> float | RewardResult:
        return self.function(completion, sample)


def as_result(value: object) -> RewardResult:
    """A reward's return value as a RewardResult.

    Raises:
        TypeError: neither a number nor a RewardResult.
        ValueError: the number is not finite.
    """
    result = value if isinstance(value, RewardResult) else RewardResult(_number(value))
    if not math.isfinite(result.value):
        raise ValueError(f"the reward is not finite: {result.value}")
    return result


def _number(value: object) -> float:
    if not hasattr(value, "__float__"):
        raise TypeError(f"a reward must return a number or a RewardResult, got {type(value).__name__}")
    return float(value)


def snake_case(name: str) -> str:
    """`MathAnswer` -> `math_answer`, `SQLExecution` -> `sql_execution`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def as_rewards(rewards: Sequence[Reward | str]) -> list[Reward]:
    """Rewards as a config names them: a plain function by its dotted path, any other as it is."""
    return [FunctionReward(reward) if isinstance(reward, str) else reward for reward in rewards]
