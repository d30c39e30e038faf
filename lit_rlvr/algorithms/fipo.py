"""FIPO: future-KL influenced policy optimisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.dapo import DAPO
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, clipped_surrogate, discounted_sum, log_ratio, masked_sum

SAFE_INFLUENCE = (0.8, 1.0)
"""Bounds of f where `safe_ratio` acts, in the authors' code."""


class FIPO(DAPO):
    """`-(1/N) sum_i sum_t f min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`: DAPO with a weight f for each token.

    `f = stopgrad(clip(exp(F), influence_low, influence_high))` with `F_t = sum_{k >= t} 2^((t - k) / half_life) log
    w_k`. It is above 1 where the rest of the completion has become more likely, and 1 on-policy.

    F leaves out tokens with `w > dual_clip`. Where A < 0 and `w > safe_ratio`, f is kept between 0.8 and 1. A
    completion with A < 0 and two or more tokens with `w > dual_clip` has no gradient.

    Source: Ma et al. 2026 (FIPO, arXiv 2603.19835), as in the authors' code and ms-swift.

    Example:
        ```yaml
        model: {class_path: FIPO, init_args: {half_life: 32.0, updates_per_rollout: 4}}
        ```

    Args:
        half_life: tokens after which a token's influence on those before it is halved.
        influence_low: lower bound of f; the authors' code has 0.8 for 7B.
        influence_high: upper bound of f.
        safe_ratio: ratio from which f may not raise the loss of a negative advantage.
        kwargs: the options of `DAPO`.
    """

    stops_gradient = True

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        dual_clip: float | None = 10.0,
        half_life: float = 32.0,
        influence_low: float = 1.0,
        influence_high: float = 1.2,
        safe_ratio: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, dual_clip=dual_clip, **kwargs)
        check_within("(0, inf)", "model", half_life=half_life)
        check_within("[0, 1]", "model", influence_low=influence_low)
        check_within("[1, inf)", "model", influence_high=influence_high, safe_ratio=safe_ratio)
        self.half_life = half_life
        self.safe_ratio = safe_ratio
        self.influence_low = influence_low
        self.influence_high = influence_high

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        d = log_ratio(x.logp, x.old_logp, x.mask)  # (B, T)
        w = d.exp()
        surrogate, stats = clipped_surrogate(w, x, self.clip_low, self.clip_high, self.dual_clip)
        far = w > (float("inf") if self.dual_clip is None else self.dual_clip)
        future = discounted_sum(torch.where(far, 0.0, d.detach()), 2 ** (-1 / self.half_life))
        f = future.exp().clamp(self.influence_low, self.influence_high)
        f = torch.where((x.advantages < 0) & (w > self.safe_ratio), f.clamp(*SAFE_INFLUENCE), f)
        kept = (far & (x.advantages < 0)).sum(1, keepdim=True) < 2  # (B, 1)
        return -masked_sum(f * surrogate * kept, x.token_weight, x.mask), stats | {"influence": (f * x.mask).sum()}
