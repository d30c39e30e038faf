"""Clip-Cov: some tokens of high covariance between log-probability and advantage get no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.grpo import GRPO
from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats, StepTokens, covariances, largest
from lit_rlvr.options import Loss


class ClipCov(GRPO):
    """GRPO's surrogate as a token mean, without the tokens that would reduce the entropy most.

    These are a random `clip_share` of the step's tokens whose covariance `(A - mean A) (logp - mean logp)`, under the
    policy at the beginning of the iteration, lies between the bounds. Each token's chance depends on its prompt,
    completion and position alone, so that the choice does not depend on micro-batches, ranks or order.

    Source: Cui et al. 2025 (the entropy mechanism, arXiv 2505.22617), section 4.2, as in verl and SkyRL.

    Example:
        ```yaml
        model: {class_path: ClipCov, init_args: {clip_share: 0.0002, updates_per_rollout: 4}}
        ```

    Args:
        clip_low: the ratio is clipped at 1 - clip_low.
        clip_high: the ratio is clipped at 1 + clip_high.
        clip_share: share of the step's tokens that lose their gradient, at least one token; fewer, or none, if fewer
            lie between the bounds.
        covariance_low: lower bound of their covariance.
        covariance_high: upper bound of their covariance.
        kwargs: the options of `GRPO`.
    """

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(aggregation="token_mean"),
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        clip_share: float = 2e-4,
        covariance_low: float = 1.0,
        covariance_high: float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, clip_low=clip_low, clip_high=clip_high, **kwargs)
        check_within("(0, 1]", "model", clip_share=clip_share)
        check_within("(-inf, inf)", "model", covariance_low=covariance_low, covariance_high=covariance_high)
        if covariance_low >= covariance_high:
            raise UserError(f"model.covariance_low: {covariance_low} must lie below covariance_high={covariance_high}")
        self.clip_share = clip_share
        self.covariance_low = covariance_low
        self.covariance_high = covariance_high

    def select_tokens(self, step: StepTokens) -> Tensor:
        covariance = covariances(step)  # (N,)
        between = (covariance > self.covariance_low) & (covariance < self.covariance_high)
        chance = torch.where(between, step.chance, -1.0)
        return between & largest(chance, int(self.clip_share * len(chance)), chance)

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        assert x.selected is not None
        loss, stats = super().objective(x.scale_tokens(~x.selected))
        return loss, stats | {"clip_cov": x.selected.sum()}
