"""Estimators that modify another one: their base, and the controlled experiments of the A-GRAE paper."""

from __future__ import annotations

from abc import abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages.base import Advantage, GroupBatch, ReferenceCompletions, register, resolve_advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.returned import require_advantages
from lit_rlvr.errors import UserError


@dataclass
class Composed(Advantage):
    """An estimator that modifies another one.

    Args:
        base: the estimator to modify: a registered name, a class_path, or a dotted path to a function.
    """

    base: Advantage | str = "grpo"

    def __post_init__(self) -> None:
        self._base = resolve_advantage(self.base)
        if self._base.needs_tokens:
            raise UserError(
                f"advantage {self.registered_name}.base: {type(self._base).__name__} gives each token an advantage; "
                "take a base that gives one for each completion"
            )
        self.min_valid_fraction = self._base.min_valid_fraction

    def base_advantages(self, groups: GroupBatch) -> Tensor:
        """Return the checked advantages (P, G) of the base estimator, which may change its copy of the groups."""
        return require_advantages(self._base, self._base(deepcopy(groups)), groups.rewards)

    @property
    def min_group(self) -> int:  # type: ignore[override]
        return self._base.min_group

    @property
    def reference_completions(self) -> ReferenceCompletions | None:
        return self._base.reference_completions

    @property
    def needs_parts(self) -> bool:  # type: ignore[override]
        return self._base.needs_parts

    @property
    def zero_for_equal_rewards(self) -> bool:  # type: ignore[override]
        return self._base.zero_for_equal_rewards

    @property
    def metrics(self) -> dict[str, float]:
        return self._base.metrics

    def state_dict(self) -> dict[str, Any]:
        return {"base": self._base.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._base.load_state_dict(state["base"])


def rescaled(advantages: Tensor, factor: Tensor, p: Tensor) -> Tensor:
    """Return `factor * A` (P, G), unchanged where the success rate p (P, 1) is 0 or 1."""
    return torch.where((p > 0) & (p < 1), factor * advantages, advantages)


def inverse_sqrt(p: Tensor) -> Tensor:
    """Return `1 / sqrt(p)`, 1 where p is not positive."""
    return torch.where(p > 0, p, 1.0).rsqrt()


@dataclass
class Dominant(Composed):
    """Control experiment I of A-GRAE: positive advantages get another size."""

    beta: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("(0, inf)", f"advantage {self.registered_name}", beta=self.beta)

    @abstractmethod
    def scale(self, advantages: Tensor) -> Tensor:
        """Return the new size of positive advantages."""

    def __call__(self, groups: GroupBatch) -> Tensor:
        advantages = self.base_advantages(groups)
        return torch.where(advantages > 0, self.scale(advantages), advantages)


@register("positive_dominant")
@dataclass
class PositiveDominant(Dominant):
    """`beta A` where A > 0. Source: A-GRAE, table 1, control experiment I.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: PositiveDominant, init_args: {base: grpo, beta: 10.0}}
        ```

    Args:
        beta: factor of the positive advantages.
    """

    def scale(self, advantages: Tensor) -> Tensor:
        return advantages * self.beta


@register("negative_dominant")
@dataclass
class NegativeDominant(Dominant):
    """`A / beta` where A > 0. Source: A-GRAE, table 1, control experiment I.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: NegativeDominant, init_args: {base: rloo, beta: 10.0}}
        ```

    Args:
        beta: divisor of the positive advantages.
    """

    def scale(self, advantages: Tensor) -> Tensor:
        return advantages / self.beta


@dataclass
class Focused(Composed):
    """Control experiment II of A-GRAE: a group's weight depends on its success rate.

    Args:
        gamma: normalisation constant.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("(0, inf)", f"advantage {self.registered_name}", gamma=self.gamma)

    @abstractmethod
    def rate(self, p: Tensor) -> Tensor:
        """Return the rate (P, 1) whose inverse square root weights a group with success rate p."""

    def __call__(self, groups: GroupBatch) -> Tensor:
        factor = self.gamma * inverse_sqrt(self.rate(groups.success))
        return rescaled(self.base_advantages(groups), factor, groups.success)


@register("hard_focused")
@dataclass
class HardFocused(Focused):
    """`gamma A / sqrt(p)`, unchanged where p is 0 or 1. Source: A-GRAE, table 1, control experiment II.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: HardFocused, init_args: {base: grpo, gamma: 0.5}}
        ```
    """

    def rate(self, p: Tensor) -> Tensor:
        return p


@register("easy_focused")
@dataclass
class EasyFocused(Focused):
    """`gamma A / sqrt(1 - p)`, unchanged where p is 0 or 1. Source: A-GRAE, table 1, control experiment II.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: EasyFocused, init_args: {base: grpo, gamma: 0.5}}
        ```
    """

    def rate(self, p: Tensor) -> Tensor:
        return 1 - p
