"""Estimators with a formula of their own, most of which compare the rewards within a group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lit_rlvr.advantages.base import (
    EQUAL_SPREAD,
    Advantage,
    GroupBatch,
    GroupRelative,
    Scale,
    centered,
    impute,
    is_mixed,
    register,
    require_lengths,
    standardised,
)
from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError


@register("grpo")
@dataclass
class GRPOAdvantage(GroupRelative):
    """`(r - mu) / (sd + eps)`. Source: DeepSeekMath (GRPO), section 4.1.2; A-GRAE, eq. 3.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: GRPOAdvantage, init_args: {scale: batch}}
        ```

    Args:
        eps: added to the standard deviation.
        unbiased_std: divide by the sample standard deviation (TRL, verl) instead of the population's.
        scale: divide by the standard deviation of the `group`, of the whole `batch` (Liu et al. 2025, Lite PPO), or by
            nothing (`none`, which is `dr_grpo`): TRL's scale_rewards.
    """

    of_rewards = True
    eps: float = 1e-6
    unbiased_std: bool = False
    scale: Scale = "group"

    def __post_init__(self) -> None:
        check_within("[0, inf)", "advantage grpo", eps=self.eps)

    def __call__(self, groups: GroupBatch) -> Tensor:
        return standardised(groups.rewards, groups.has_reward, self.eps, self.unbiased_std, self.scale)


@register("gdpo")
@dataclass
class GDPOAdvantage(Advantage):
    """Each reward standardised in its group, their weighted sum standardised over the batch.

    `A = (R - mean R) / (sd R + eps)`, `R = sum_k w_k (r_k - mu_k) / (sd_k + eps)`: a reward with a small spread counts
    as much as one with a large spread. A reward that does not judge a completion is left out of its sum and its group's
    statistics. Source: GDPO (arXiv 2601.05242); TRL's multi_objective_aggregation: normalize_then_sum.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args: {advantage: gdpo}
        ```

    Args:
        eps: added to the standard deviations.
        unbiased_std: divide by sample standard deviations (TRL, verl) instead of the population's.
    """

    min_group = 2
    needs_parts = True
    eps: float = 1e-4
    unbiased_std: bool = True

    def __post_init__(self) -> None:
        check_within("[0, inf)", "advantage gdpo", eps=self.eps)

    def __call__(self, groups: GroupBatch) -> Tensor:
        centered(groups.rewards, groups.has_reward)  # refuses groups of one
        parts = groups.parts or {"reward": groups.rewards.where(groups.has_reward, torch.nan)}
        weights = groups.weights or dict.fromkeys(parts, 1.0)
        known = torch.stack([~part.isnan() for part in parts.values()]).any(0)  # (P, G)
        terms = []
        for name, part in parts.items():
            terms.append(weights[name] * self._standardised(part, 1).nan_to_num())
        total = torch.stack(terms).sum(0)  # (P, G)
        differs = torch.stack([term != 0 for term in terms]).any(0).any(1, keepdim=True)  # (P, 1) not all rewards equal
        return torch.where(known & differs, self._standardised(total.where(known, torch.nan), None), 0.0)

    def _standardised(self, values: Tensor, dim: int | None) -> Tensor:
        """Return `(v - mean) / (sd + eps)` over the values that are not NaN, of each group (`dim` 1) or of all."""
        known = ~values.isnan()
        count = known.sum(dim, keepdim=True).to(values.dtype)
        mean = values.nansum(dim, keepdim=True) / count
        spread = values - mean
        sums = spread.square().nansum(dim, keepdim=True)
        std = (sums / (count - int(self.unbiased_std)).clamp(min=1)).sqrt()
        largest = spread.abs().nan_to_num().amax(dim if dim is not None else (0, 1), keepdim=True)
        return torch.where(largest <= EQUAL_SPREAD, torch.where(known, 0.0, torch.nan), spread / (std + self.eps))


@register("dr_grpo")
@dataclass
class DrGRPOAdvantage(GroupRelative):
    """`r - mu`. Source: Liu et al. 2025 (Dr. GRPO), section 3.2.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args: {advantage: dr_grpo}
        ```
    """

    of_rewards = True

    def __call__(self, groups: GroupBatch) -> Tensor:
        return centered(groups.rewards, groups.has_reward)


@register("gpg")
@dataclass
class GPGAdvantage(GroupRelative):
    """`alpha (r - mu) / F` with `alpha = P / P_valid`, `P_valid` counting the groups whose rewards differ.

    Source: Chu et al. 2025 (GPG, arXiv 2504.02546); AAPO, eq. 3, which leaves `alpha` out.

    Example:
        ```yaml
        model:
          class_path: GPG
          init_args:
            advantage: {class_path: GPGAdvantage, init_args: {f_norm: std}}
        ```

    Args:
        f_norm: F: `one`, or `std`, the population standard deviation plus eps.
        rescale_valid: False sets `alpha` to 1.
        eps: added to the standard deviation.
        min_valid_fraction: sample more prompts until as many groups as this share of an iteration's prompts have
            different rewards among their completions (the paper uses 0.6); None = never. All sampled groups are trained
            on.
    """

    of_rewards = True
    f_norm: Literal["one", "std"] = "one"
    rescale_valid: bool = True
    eps: float = 1e-6
    min_valid_fraction: float | None = None

    def __post_init__(self) -> None:
        check_within("[0, inf)", "advantage gpg", eps=self.eps)
        check_within("(0, 1]", "advantage gpg", min_valid_fraction=self.min_valid_fraction)

    def __call__(self, groups: GroupBatch) -> Tensor:
        r = groups.rewards
        known = groups.has_reward
        if self.f_norm == "one":
            advantages = centered(r, known)
        else:
            advantages = standardised(r, known, self.eps)
        valid = int(is_mixed(r, known).sum())
        if self.rescale_valid and valid:
            return advantages * (len(r) / valid)
        return advantages


@register("rloo")
@dataclass
class RLOOAdvantage(GroupRelative):
    """`r` minus the mean of the group's other rewards, which is `(r - mu) n / (n - 1)` with n rewards (usually G).

    Source: Ahmadian et al. 2024 (RLOO, arXiv 2402.14740).

    Example:
        ```yaml
        model:
          class_path: Reinforce
          init_args: {advantage: rloo}
        ```
    """

    of_rewards = True

    def __call__(self, groups: GroupBatch) -> Tensor:
        size = groups.rewards.shape[1]
        n = groups.has_reward.sum(1, keepdim=True).to(groups.rewards.dtype)  # (P, 1)
        advantages = centered(groups.rewards, groups.has_reward) * size / (size - 1)
        return advantages * (n * (size - 1) / ((n - 1).clamp(min=1) * size))  # a factor of 1 if all have a reward


@register("maxrl")
@dataclass
class MaxRLAdvantage(GroupRelative):
    """`(r - mu) / mu`, 0 in groups with mu <= 0, for rewards that are not negative.

    With 0/1 rewards a right answer's advantage is `(1 - p) / p`, p the success rate, and a wrong one's -1. The gradient
    is in expectation that of `-sum_k (1 - p)^k / k` for k = 1 to G - 1, the series of log p.
    Source: Tajwar et al. 2026 (MaxRL, arXiv 2602.02710).

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args: {advantage: maxrl}
        ```
    """

    of_rewards = True

    def __call__(self, groups: GroupBatch) -> Tensor:
        mean = impute(groups.rewards, ~groups.has_reward).mean(1, keepdim=True)  # (P, 1)
        return torch.where(mean > 0, centered(groups.rewards, groups.has_reward) / mean, 0.0)


@register("opo")
@dataclass
class OPOAdvantage(GroupRelative):
    """`r - sum(l r) / sum(l)`, l the lengths of the group's completions in tokens.

    The baseline has the least variance if the squared norm of a completion's gradient is proportional to its length.
    Source: Hao et al. 2025 (OPO, arXiv 2505.23585).

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args: {advantage: opo}
        ```
    """

    of_rewards = True

    def __call__(self, groups: GroupBatch) -> Tensor:
        return centered(groups.rewards, groups.has_reward, require_lengths(groups, "opo"))


@register("none")
@dataclass
class NoAdvantage(Advantage):
    """0: rewards are measured and do not train. For a teacher alone, whose term is added to the advantages.

    Example:
        ```yaml
        model:
          class_path: OPD
          init_args: {advantage: none, teacher: {model: HuggingFaceTB/SmolLM2-1.7B-Instruct}}
        ```
    """

    def __call__(self, groups: GroupBatch) -> Tensor:
        return torch.zeros_like(groups.rewards)


@register("reinforce")
@dataclass
class ReinforceAdvantage(Advantage):
    """`+positive_weight` where correct, `-negative_weight` where wrong, 0 where no reward says which.

    The weights (0.1, 1) are W-REINFORCE, (1, 0) PSR, (0, 1) NSR. Source: Zhu et al. 2025 (the effectiveness of negative
    reinforcement, arXiv 2506.01347).

    Example:
        ```yaml
        model:
          class_path: Reinforce
          init_args:
            advantage: {class_path: ReinforceAdvantage, init_args: {positive_weight: 0.1}}
        ```

    Args:
        positive_weight: weight of a correct completion (the paper's lambda).
        negative_weight: weight of a wrong completion.
    """

    positive_weight: float = 0.1
    negative_weight: float = 1.0

    def __post_init__(self) -> None:
        weights = {"positive_weight": self.positive_weight, "negative_weight": self.negative_weight}
        check_within("[0, inf)", "advantage reinforce", **weights)

    def __call__(self, groups: GroupBatch) -> Tensor:
        correct = groups.correct.to(groups.rewards.dtype)
        advantages = correct * self.positive_weight - (1 - correct) * self.negative_weight
        return torch.where(groups.has_correct, advantages, 0.0)


@register("grpo_lead")
@dataclass
class GRPOLeadAdvantage(GroupRelative):
    """GRPO on a length-shaped reward, weighted by difficulty.

    Reward: `exp(-alpha z)` where correct, `z` the length standardised over the group's correct completions; -1
    where wrong. Weight: `f(p)` where the advantage is positive, `f(1 - p)` elsewhere, with
    `f(x) = weight_min + (weight_max - weight_min) / (1 + exp(slope (x - center)))` and p the success rate.

    Source: Zhang & Zuo 2025 (GRPO-LEAD, arXiv 2504.09696).

    Example:
        ```yaml
        model:
          class_path: GRPOLead
          init_args:
            advantage: {class_path: GRPOLeadAdvantage, init_args: {alpha: 0.1, slope: 10.0}}
        ```

    Args:
        alpha: strength of the length shaping.
        weight_min: weight of the easiest groups.
        weight_max: weight of the hardest groups.
        slope: steepness of the weight in p.
        center: success rate at the middle weight.
    """

    zero_for_equal_rewards = False  # correct completions of different lengths differ
    alpha: float = 0.05
    weight_min: float = 0.4
    weight_max: float = 1.5
    slope: float = 10.0
    center: float = 0.75

    def __post_init__(self) -> None:
        check_within("[0, inf)", "advantage grpo_lead", alpha=self.alpha, slope=self.slope)
        check_within("[0, inf)", "advantage grpo_lead", weight_min=self.weight_min, weight_max=self.weight_max)
        check_within("[0, 1]", "advantage grpo_lead", center=self.center)
        if self.weight_min > self.weight_max:
            raise UserError(f"advantage grpo_lead: weight_min {self.weight_min} is above weight_max {self.weight_max}")

    def __call__(self, groups: GroupBatch) -> Tensor:
        c = groups.correct.to(groups.rewards.dtype) * groups.has_correct
        lengths = require_lengths(groups, "grpo_lead")
        count = c.sum(1, keepdim=True).clamp(min=1)  # (P, 1)
        mean = (lengths * c).sum(1, keepdim=True) / count
        std = ((lengths - mean).square() * c).sum(1, keepdim=True).div(count).sqrt()
        shaped = torch.where(c > 0, torch.exp(-self.alpha * (lengths - mean) / (std + 1e-6)), -1.0)
        advantages = GRPOAdvantage()(replace(groups, rewards=shaped, has_reward=groups.has_correct))
        p = groups.success
        return advantages * torch.where(advantages > 0, self._weight(p), self._weight(1 - p))

    def _weight(self, x: Tensor) -> Tensor:
        return self.weight_min + (self.weight_max - self.weight_min) * torch.sigmoid(-self.slope * (x - self.center))
