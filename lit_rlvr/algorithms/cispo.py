"""CISPO: clipped importance sampling policy optimisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, masked_sum, ratio
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class CISPO(RLVRModule):
    """`-(1/N) sum_i sum_t stopgrad(min(w, ratio_cap)) A logp`: the ratio is a capped weight; no token is clipped away.

    Source: MiniMax 2025 (MiniMax-M1, arXiv 2506.13585), eqs. 4-5.

    Example:
        ```yaml
        model: {class_path: CISPO, init_args: {ratio_cap: 4.0, updates_per_rollout: 4}}
        ```

    Args:
        ratio_cap: upper bound of a token's ratio.
        ratio_floor: lower bound; 0 = none, as in the paper's experiments (verl: 1 - clip_ratio_low).
        dual_clip: the same bound for negative advantages only, if it is lower; None = off.
        kwargs: the options of `RLVRModule`.
    """

    stops_gradient = True

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(aggregation="token_mean"),
        ratio_cap: float = 5.0,
        ratio_floor: float = 0.0,
        dual_clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("[1, inf)", "model", ratio_cap=ratio_cap)
        check_within("[0, 1]", "model", ratio_floor=ratio_floor)
        check_within("(1, inf)", "model", dual_clip=dual_clip)
        self.ratio_cap = ratio_cap
        self.ratio_floor = ratio_floor
        self.dual_clip = dual_clip

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        w = ratio(x.logp, x.old_logp, x.mask).detach()  # (B, T)
        weight = w.clamp(self.ratio_floor, self.ratio_cap)
        if self.dual_clip is not None:
            weight = torch.where(x.advantages < 0, weight.clamp(max=self.dual_clip), weight)
        loss = -masked_sum(weight * x.advantages * x.logp, x.token_weight, x.mask)
        return loss, {"clip_low": ((weight > w) & x.mask).sum(), "clip_high": ((weight < w) & x.mask).sum()}
