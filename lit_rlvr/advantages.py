"""Advantage estimators: (P, G) rewards of groups in, (P, G) advantages out; and their registry.

P prompts (over all ranks), G completions per prompt. An advantage is a constant: no gradient flows into it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_rlvr.errors import UserError

DEGENERATE = 1e-8  # a group whose rewards spread no more than this says nothing about its completions


@dataclass
class GroupBatch:
    """What an estimator sees: (P, G) floats of the whole rollout, gathered over all ranks.

    Args:
        rewards: r, the weighted sum of all rewards.
        correct: c in {0, 1}; never inferred from r.
        reference_rewards: s, rewards of the reference model's completions, paired by index; None if there are none.
        lengths: sampled tokens of each completion.
    """

    rewards: Tensor
    correct: Tensor
    reference_rewards: Tensor | None = None
    lengths: Tensor | None = None


AdvantageFunction = Callable[[GroupBatch], Tensor]


class Advantage(ABC):
    """An estimator with options. Subclass it as a dataclass, or use any function of a `GroupBatch`."""

    @abstractmethod
    def __call__(self, group: GroupBatch) -> Tensor:
        """Advantages (P, G) of the groups."""


REGISTRY: dict[str, type[Advantage]] = {}
_Class = TypeVar("_Class", bound=type[Advantage])


def register(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make an `Advantage` known by a short name."""

    def add(cls: _Class) -> _Class:
        if name in REGISTRY:
            raise ValueError(f"advantage {name!r} is registered twice: {REGISTRY[name]} and {cls}")
        REGISTRY[name] = cls
        return cls

    return add


def resolve_advantage(advantage: AdvantageFunction | str) -> AdvantageFunction:
    """An estimator from a registered name, a dotted path to a class or function, or itself.

    Raises:
        UserError: the name is neither registered nor importable.
    """
    if not isinstance(advantage, str):
        return advantage
    if advantage in REGISTRY:
        return REGISTRY[advantage]()
    module_name, _, attribute = advantage.rpartition(".")
    known = ", ".join(sorted(REGISTRY))
    if not module_name:
        raise UserError(f"advantage: {advantage!r} is not registered; use one of {known}, or a dotted path")
    try:
        found: Any = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"advantage: {advantage!r} cannot be imported ({error}); registered names: {known}") from error
    return found() if isinstance(found, type) else found


def group_std(rewards: Tensor, unbiased: bool) -> Tensor:
    """Standard deviation of each group (P, 1): population, or the sample one that TRL and verl use."""
    return rewards.std(dim=1, correction=1 if unbiased else 0, keepdim=True)


def centered(rewards: Tensor) -> Tensor:
    """`r - mu` (P, G), exactly 0 in degenerate groups (never a rounding residue)."""
    spread = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True)  # (P, 1)
    return torch.where(spread <= DEGENERATE, 0.0, rewards - rewards.mean(1, keepdim=True))


@register("grpo")
@dataclass
class GRPOAdvantage(Advantage):
    """`(r - mu) / (sd + eps)`. Source: DeepSeekMath (GRPO), section 4.1.2; A-GRAE, eq. 3.

    Args:
        eps: added to the standard deviation.
        unbiased_std: divide by the sample standard deviation (TRL, verl) instead of the population's.
    """

    eps: float = 1e-6
    unbiased_std: bool = False

    def __call__(self, group: GroupBatch) -> Tensor:
        return centered(group.rewards) / (group_std(group.rewards, self.unbiased_std) + self.eps)
