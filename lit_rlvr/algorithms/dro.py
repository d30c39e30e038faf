"""DRO: direct reward optimisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, log_ratio, row_sum
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class DRO(RLVRModule):
    """`-(1/B) sum_i (A log W - (beta/2) (log W)^2)`: a quadratic penalty in place of a clip.

    W is the product over the sequence of the ratios to the policy that sampled it. The loss is the squared error of
    `beta log W` as an estimate of A, so a completion with A = 0 is pulled back, too.

    Source: Richemond et al. 2024 (DRO, arXiv 2405.19107); Kimi k1.5 (arXiv 2501.12599), section 2.3.2, with the mean
    reward of the group in place of a learned value.

    Example:
        ```yaml
        model: {class_path: DRO, init_args: {beta: 0.05}}
        ```

    Args:
        beta: weight of the penalty (the papers' tau).
        kwargs: the options of `RLVRModule`.
    """

    sequence_level = True
    uses_rollout = True
    fixes_aggregation = True

    def __init__(
        self,
        advantage: Advantage | str = "dr_grpo",
        loss: Loss = Loss(aggregation="token_sum"),
        beta: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("[0, inf)", "model", beta=beta)
        self.beta = beta

    @property
    def trains_all_rows(self) -> bool:
        return super().trains_all_rows or self.beta != 0

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        log_w = log_ratio(x.logp, x.rollout_logp, x.mask).sum(1)  # (B,)
        loss = -row_sum(x.advantages[:, 0] * log_w - self.beta / 2 * log_w.square(), x)
        return loss, {"squared_log_ratio": (log_w.detach().square()[:, None] * x.mask).sum()}
