"""TOPR: tapered off-policy REINFORCE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.objectives import LossInputs, Stats, log_ratio, masked_sum
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class TOPR(RLVRModule):
    """`-(1/B) sum_i stopgrad(alpha) A sum_t logp`, alpha 1 where A >= 0, else `min(W, 1)`.

    W is the product over the sequence of the ratios to the policy that sampled it. So right completions are learned as
    in supervised training, and a wrong one counts less the less likely it has become.

    The paper's A is the reward itself, 1 or -1: `advantage: {class_path: ReinforceAdvantage, init_args:
    {positive_weight: 1}}`. With the default it is the reward minus the mean of the group.

    Source: Le Roux et al. 2025 (TOPR, arXiv 2503.14286).

    Example:
        ```yaml
        model: {class_path: TOPR, init_args: {updates_per_rollout: 4}}
        ```

    Args:
        kwargs: the options of `RLVRModule`.
    """

    stops_gradient = True
    sequence_level = True
    uses_rollout = True

    def __init__(
        self, advantage: Advantage | str = "dr_grpo", loss: Loss = Loss(aggregation="token_sum"), **kwargs: Any
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        log_w = log_ratio(x.logp.detach(), x.rollout_logp, x.mask).sum(1, keepdim=True)  # (B, 1)
        alpha = torch.where(x.advantages < 0, log_w.clamp(max=0).exp(), 1.0)
        return -masked_sum(alpha * x.advantages * x.logp, x.token_weight, x.mask), {"taper": (alpha * x.mask).sum()}
