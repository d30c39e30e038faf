"""Estimators that modify another one: AAPO's margin and the controlled experiments of the A-GRAE paper."""

from __future__ import annotations

from abc import abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rlvr.advantages.base import Advantage, GroupBatch, impute, register, resolve_advantage
from lit_rlvr.common.returned import require_advantages
from lit_rlvr.errors import UserError, check_within


@dataclass
class Composed(Advantage):
    """An estimator that modifies another one.

    Args:
        base: the estimator to modify: a registered name, a class_path, or a dotted path to a function.
    """

    base: Advantage | str = "grpo"

    def __post_init__(self) -> None:
        self._base = resolve_advantage(self.base)
        self.min_valid_fraction = self._base.min_valid_fraction

    def base_advantages(self, group: GroupBatch) -> Tensor:
        """Return the checked advantages (P, G) of the base estimator, which may change its copy of the groups."""
        return require_advantages(self._base, self._base(deepcopy(group)), group.rewards)

    @property
    def min_group(self) -> int:
        return self._base.min_group

    @property
    def needs_reference(self) -> bool:
        return self._base.needs_reference

    @property
    def needs_parts(self) -> bool:
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


@register("aapo")
@dataclass
class AAPOAdvantage(Composed):
    """Base plus the margin over the reference model: `A + clip(r - s, delta_low, delta_high)`.

    Source: AAPO, eq. 5. A group whose rewards are all the same keeps its margin. The margin is 0 where a reward is
    missing.

    Args:
        base: the estimator to add the margin to (the released 7B run: `dr_grpo`).
        delta_low: lower bound of the margin.
        delta_high: upper bound of the margin.
        clip: False leaves the margin unbounded.
        margin: `paired` compares completion g with reference completion g; `group_mean` with their mean.
    """

    delta_low: float = -0.2
    delta_high: float = 0.28
    clip: bool = True
    margin: Literal["paired", "group_mean"] = "paired"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("(-inf, inf)", "advantage aapo", delta_low=self.delta_low, delta_high=self.delta_high)
        if self.delta_low > self.delta_high:
            raise UserError(f"advantage aapo: delta_low {self.delta_low} is above delta_high {self.delta_high}")
        self._metrics: dict[str, float] = {}

    def __call__(self, group: GroupBatch) -> Tensor:
        if group.reference_rewards is None:
            raise UserError("advantage aapo: needs the rewards of reference completions, and this batch has none")
        s = group.reference_rewards.to(group.rewards.dtype)
        known = ~s.isnan()
        if self.margin == "group_mean":
            s, known = impute(s, ~known).mean(1, keepdim=True), known.any(1, keepdim=True)
        known = known & group.rewarded  # (P, G)
        margin = group.rewards - s
        margin = margin.clamp(self.delta_low, self.delta_high) if self.clip else margin
        base = self.base_advantages(group)
        self._metrics = {
            "margin": float(margin[known].mean()),
            "zero_advantage_base": float((base == 0)[group.rewarded].double().mean()),
        }
        return base + torch.where(known, margin, 0.0)

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def zero_for_equal_rewards(self) -> bool:  # type: ignore[override]
        return False  # the margin differs

    @property
    def metrics(self) -> dict[str, float]:
        return self._base.metrics | self._metrics


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

    def __call__(self, group: GroupBatch) -> Tensor:
        advantages = self.base_advantages(group)
        return torch.where(advantages > 0, self.scale(advantages), advantages)


@register("positive_dominant")
@dataclass
class PositiveDominant(Dominant):
    """`beta A` where A > 0. Source: A-GRAE, table 1, control experiment I.

    Args:
        beta: factor of the positive advantages.
    """

    def scale(self, advantages: Tensor) -> Tensor:
        return advantages * self.beta


@register("negative_dominant")
@dataclass
class NegativeDominant(Dominant):
    """`A / beta` where A > 0. Source: A-GRAE, table 1, control experiment I.

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

    def __call__(self, group: GroupBatch) -> Tensor:
        factor = self.gamma * inverse_sqrt(self.rate(group.success))
        return rescaled(self.base_advantages(group), factor, group.success)


@register("hard_focused")
@dataclass
class HardFocused(Focused):
    """`gamma A / sqrt(p)`, unchanged where p is 0 or 1. Source: A-GRAE, table 1, control experiment II."""

    def rate(self, p: Tensor) -> Tensor:
        return p


@register("easy_focused")
@dataclass
class EasyFocused(Focused):
    """`gamma A / sqrt(1 - p)`, unchanged where p is 0 or 1. Source: A-GRAE, table 1, control experiment II."""

    def rate(self, p: Tensor) -> Tensor:
        return 1 - p
