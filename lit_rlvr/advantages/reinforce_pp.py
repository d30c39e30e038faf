"""REINFORCE++: rewards standardised over the tokens of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlvr.advantages.base import Advantage, GroupBatch, centered, is_mixed, register, require_lengths


@register("reinforce_pp")
@dataclass
class ReinforcePPAdvantage(Advantage):
    """`(r - m) / sqrt(v + 1e-8)`, m and v the mean and the sample variance of r over the tokens of the batch.

    Each token counts once, as in verl, so a completion counts by its length. A group of equal rewards has an advantage
    too, unless the whole batch's are equal. Source: Hu et al. 2025 (REINFORCE++, arXiv 2501.03262), without its KL term
    in the reward.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: ReinforcePPAdvantage, init_args: {group_baseline: true}}
        ```

    Args:
        group_baseline: subtract the mean of the group from r first (the paper's REINFORCE++ with baseline).
    """

    of_rewards = True
    group_baseline: bool = False

    def __post_init__(self) -> None:
        self.min_group = 2 if self.group_baseline else 1

    def __call__(self, groups: GroupBatch) -> Tensor:
        known = groups.has_reward
        if self.group_baseline:
            r = centered(groups.rewards, known)
        else:
            r = groups.rewards
        tokens = require_lengths(groups, "reinforce_pp") * known  # (P, G)
        mean = (tokens * r).sum() / tokens.sum().clamp(min=1)
        is_flat = ~is_mixed(r.reshape(1, -1), known.reshape(1, -1))  # (1, 1)
        spread = torch.where(known & ~is_flat, r - mean, 0.0)
        variance = (tokens * spread.square()).sum() / (tokens.sum() - 1).clamp(min=1)
        return spread * (variance + 1e-8).rsqrt()
