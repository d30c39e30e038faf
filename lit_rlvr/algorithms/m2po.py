"""M2PO: second-moment trust policy optimisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, StepTokens, largest, masked_sum, ratio
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class M2PO(RLVRModule):
    """`-(1/N) sum_i sum_t M r A`, with r the ratio to the policy mu that sampled the token, and no clip.

    M drops the step's tokens with the largest `(log old - log mu)^2`, as few as it takes for the mean of the others to
    be below `threshold`, but never all; old is the policy at the beginning of the iteration. Made for tokens of much
    older weights (`rollout.staleness`): without them nothing is dropped.

    Source: Zheng et al. 2025 (M2PO, arXiv 2510.01161), as in AReaL.

    Example:
        ```yaml
        model: {class_path: M2PO, init_args: {threshold: 0.04, updates_per_rollout: 4}}
        ```

    Args:
        threshold: bound of the second moment (tau_M2).
        kwargs: the options of `RLVRModule`.
    """

    uses_rollout = True

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(aggregation="token_mean"),
        threshold: float = 0.04,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("(0, inf)", "model", threshold=threshold)
        self.threshold = threshold

    def select_tokens(self, step: StepTokens) -> Tensor:
        distance = (step.old_logp - step.rollout_logp).abs()  # (N,)
        ascending = distance.sort().values.square()
        means = ascending.cumsum(0) / torch.arange(1, len(ascending) + 1, device=ascending.device)
        return largest(-distance, int((means < self.threshold).sum()), step.chance)  # means rise

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        assert x.selected is not None
        r = ratio(x.logp, x.rollout_logp, x.mask)  # (B, T)
        loss = -masked_sum(r * x.advantages * x.selected, x.token_weight, x.mask)
        return loss, {"m2po_dropped": (x.mask & ~x.selected).sum()}
