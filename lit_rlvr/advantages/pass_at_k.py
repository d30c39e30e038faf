"""Estimators of pass@k and of the best of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_rlvr.advantages.base import Advantage, GroupBatch, GroupRelative, centered, group_std, is_mixed, register
from lit_rlvr.common.arguments import check_within


@register("pass_at_k")
@dataclass
class PassAtKAdvantage(Advantage):
    """`(c - p) / (1 - p) sqrt(F / (1 - F))`, F the share of the group's k-subsets without a right completion.

    This is pass@k training: a subset's reward is 1 if it holds a right completion, it is standardised over all subsets,
    and a completion's advantage is the mean over those that hold it. `F = C(n - n_c, k) / C(n, k)` for n_c right ones
    of n, and p = n_c / n. Groups with F = 0 or 1 get 0; k = 1 is `grpo` on `correct`.
    Source: Chen et al. 2025 (pass@k training, arXiv 2508.10751).

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: PassAtKAdvantage, init_args: {k: 4}}
        ```

    Args:
        k: completions of a subset; with k = G all groups would get 0.
    """

    k: int = 2

    def __post_init__(self) -> None:
        check_within("[1, inf)", "advantage pass_at_k", k=self.k)
        self.min_group = self.k + 1

    def __call__(self, groups: GroupBatch) -> Tensor:
        c = groups.correct.to(groups.rewards.dtype)
        known = groups.has_correct
        n = known.sum(1, keepdim=True).to(c.dtype)  # (P, 1)
        misses = (known & (c == 0)).sum(1, keepdim=True).to(c.dtype)
        fail = torch.ones_like(n)  # F
        for i in range(self.k):
            fail = fail * ((misses - i).clamp(min=0) / (n - i).clamp(min=1))
        scale = (fail / (1 - fail)).sqrt() * n / misses
        return torch.where((fail > 0) & (fail < 1), centered(c, known) * scale, 0.0)


@register("grpo_passk")
@dataclass
class GRPOPassKAdvantage(GroupRelative):
    """The best reward of the group minus its second best for the best completion, 0 for all others.

    This is the group's best reward minus its best one without the completion, so that pass@G is maximised.
    Source: Tang et al. 2025 (inference time objectives, arXiv 2503.19595); verl's grpo_passk.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args: {advantage: grpo_passk}
        ```

    Args:
        scale: `group` divides by the sample standard deviation of the group plus 1e-6 (verl's default); `none` does
            not divide.
    """

    of_rewards = True
    scale: Literal["group", "none"] = "none"

    def __call__(self, groups: GroupBatch) -> Tensor:
        r = groups.rewards
        known = groups.has_reward
        above = centered(r, known)  # refuses groups of one; 0 where not known
        best, second = torch.where(known, above, -torch.inf).topk(2, dim=1).values.split(1, dim=1)  # (P, 1) each
        size = best - second
        if self.scale == "group":
            size = size / (group_std(r, known, unbiased=True) + 1e-6)
        return torch.where((above == best) & known & is_mixed(r, known), size, 0.0)
