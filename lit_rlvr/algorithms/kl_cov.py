"""KL-Cov: tokens of high covariance between log-probability and advantage get a KL penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, StepTokens, covariances, largest, log_ratio, masked_sum
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class KLCov(RLVRModule):
    """`-(1/N) sum_i sum_t (w A - penalty_coef |log w|)`, without a clip.

    The second term counts only for the tokens that would reduce the entropy most.

    These are the `penalty_share` of the step's tokens with the largest covariance `(A - mean A) (logp - mean logp)`,
    under the policy at the beginning of the iteration, on which w is the ratio.

    Source: Cui et al. 2025 (the entropy mechanism, arXiv 2505.22617), section 4.2, as in verl.

    Example:
        ```yaml
        model: {class_path: KLCov, init_args: {penalty_share: 0.002, penalty_coef: 1.0, updates_per_rollout: 4}}
        ```

    Args:
        penalty_share: share of the step's tokens with the penalty, at least one token.
        penalty_coef: weight of the penalty.
        kwargs: the options of `RLVRModule`.
    """

    trains_all_rows = True  # a token with advantage 0 may have the penalty

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(aggregation="token_mean"),
        penalty_share: float = 2e-4,
        penalty_coef: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("(0, 1]", "model", penalty_share=penalty_share)
        check_within("[0, inf)", "model", penalty_coef=penalty_coef)
        self.penalty_share = penalty_share
        self.penalty_coef = penalty_coef

    def select_tokens(self, step: StepTokens) -> Tensor:
        return largest(covariances(step), int(self.penalty_share * len(step.old_logp)), step.chance)

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        assert x.selected is not None
        d = log_ratio(x.logp, x.old_logp, x.mask)  # (B, T)
        terms = d.exp() * x.advantages - self.penalty_coef * x.selected * d.abs()
        return -masked_sum(terms, x.token_weight, x.mask), {"kl_cov": x.selected.sum()}
