"""AAPO's margin over the reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_rlvr.advantages.base import GroupBatch, ReferenceCompletions, impute, register
from lit_rlvr.advantages.composed import Composed
from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError


@register("aapo")
@dataclass
class AAPOAdvantage(Composed):
    """Base plus the margin over the reference model: `A + clip(r - s, delta_low, delta_high)`.

    Source: AAPO, eq. 5. A group whose rewards are all the same keeps its margin. The margin is 0 where a reward is
    missing.

    Example:
        ```yaml
        model:
          class_path: AAPO
          init_args:
            advantage: {class_path: AAPOAdvantage, init_args: {margin: group_mean}}
        ```

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

    def __call__(self, groups: GroupBatch) -> Tensor:
        if groups.reference_rewards is None:
            raise UserError("advantage aapo: needs the rewards of reference completions, and this batch has none")
        s = groups.reference_rewards.to(groups.rewards.dtype)
        known = ~s.isnan()
        if self.margin == "group_mean":
            s = impute(s, ~known).mean(1, keepdim=True)
            known = known.any(1, keepdim=True)
        known = known & groups.has_reward  # (P, G)
        margin = groups.rewards - s
        if self.clip:
            margin = margin.clamp(self.delta_low, self.delta_high)
        base = self.base_advantages(groups)
        self._metrics = {
            "margin": float(margin[known].mean()),
            "zero_advantage_base": float((base == 0)[groups.has_reward].double().mean()),
        }
        return base + torch.where(known, margin, 0.0)

    @property
    def reference_completions(self) -> ReferenceCompletions:
        return ReferenceCompletions()

    @property
    def zero_for_equal_rewards(self) -> bool:  # type: ignore[override]
        return False  # the margin differs

    @property
    def metrics(self) -> dict[str, float]:
        return self._base.metrics | self._metrics
