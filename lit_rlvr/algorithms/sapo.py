"""SAPO: soft adaptive policy optimisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, masked_sum, ratio
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class SAPO(RLVRModule):
    """`-(1/B) sum_i (1/n_i) sum_t (4 / tau) sigmoid(tau (w - 1)) A`: a soft gate instead of a clip.

    tau is `tau_pos` where A > 0, else `tau_neg`. On-policy the gate's slope is 1, so the gradient is GRPO's.

    Source: Gao et al. 2025 (SAPO, arXiv 2511.20347), as in TRL, verl and SkyRL.

    Example:
        ```yaml
        model: {class_path: SAPO, init_args: {tau_pos: 1.0, tau_neg: 1.05, updates_per_rollout: 4}}
        ```

    Args:
        tau_pos: temperature of the gate where the advantage is positive; a higher one closes it sooner.
        tau_neg: temperature elsewhere.
        kwargs: the options of `RLVRModule`.
    """

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(),
        tau_pos: float = 1.0,
        tau_neg: float = 1.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("(0, inf)", "model", tau_pos=tau_pos, tau_neg=tau_neg)
        self.tau_pos = tau_pos
        self.tau_neg = tau_neg

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        tau = torch.where(x.advantages > 0, torch.full_like(x.advantages, self.tau_pos), self.tau_neg)
        gate = torch.sigmoid(tau * (ratio(x.logp, x.old_logp, x.mask) - 1)) * 4 / tau  # (B, T)
        return -masked_sum(gate * x.advantages, x.token_weight, x.mask), {}
