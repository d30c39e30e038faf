"""VESPO: variational sequence-level soft policy optimisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, log_ratio, masked_sum
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule

MIN_LOG_WEIGHT, MAX_LOG_WEIGHT = math.log(1e-8), 20.0
"""Bounds of log W, as in TRL, which takes them from the authors' code."""


class VESPO(RLVRModule):
    """`-(1/N) sum_i sum_t stopgrad(phi(W)) A logp` with `phi(W) = W^k exp(lambda (1 - W))`.

    W is the product over the sequence of the ratios to the policy that sampled it, so phi, which is 1 on-policy, is
    also the importance correction. log W is kept between log 1e-8 and 20. k and lambda depend on the sign of A.

    Source: VESPO (arXiv 2602.10693), as in TRL.

    Example:
        ```yaml
        model: {class_path: VESPO, init_args: {k_neg: 3.0, lambda_neg: 2.0, updates_per_rollout: 4}}
        ```

    Args:
        k_pos: k where A >= 0.
        lambda_pos: lambda where A >= 0.
        k_neg: k where A < 0.
        lambda_neg: lambda where A < 0.
        kwargs: the options of `RLVRModule`.
    """

    stops_gradient = True
    sequence_level = True
    uses_rollout = True

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(aggregation="token_mean"),
        k_pos: float = 2.0,
        lambda_pos: float = 3.0,
        k_neg: float = 3.0,
        lambda_neg: float = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("[0, inf)", "model", k_pos=k_pos, k_neg=k_neg)
        check_within("(0, inf)", "model", lambda_pos=lambda_pos, lambda_neg=lambda_neg)
        self.k_pos = k_pos
        self.lambda_pos = lambda_pos
        self.k_neg = k_neg
        self.lambda_neg = lambda_neg

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        log_w = log_ratio(x.logp.detach(), x.rollout_logp, x.mask).sum(1, keepdim=True)  # (B, 1)
        log_w = log_w.clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT)
        k = torch.where(x.advantages < 0, torch.full_like(log_w, self.k_neg), self.k_pos)  # (B, 1)
        rate = torch.where(x.advantages < 0, torch.full_like(log_w, self.lambda_neg), self.lambda_pos)
        phi = (k * log_w + rate * (1 - log_w.exp())).exp()  # (B, 1)
        return -masked_sum(phi * x.advantages * x.logp, x.token_weight, x.mask), {"phi": (phi * x.mask).sum()}
