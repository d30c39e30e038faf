"""AAPO: advantage-augmented policy optimisation."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lit_rlvr.advantages import Advantage, ReferenceCompletions
from lit_rlvr.common.arguments import check_within
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import LossInputs, Stats, policy_gradient
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class AAPO(RLVRModule):
    """`-(1/P) sum_p (1/sum_g n) sum_g sum_t A logp`, A with a margin over the reference model's rewards.

    Source: AAPO (arXiv 2505.14264), eqs. 4-5.

    Example:
        ```yaml
        model: {class_path: AAPO, init_args: {reference_rollouts: pool, reference_pool_size: 16}}
        ```

    Args:
        reference_rollouts: `fresh` samples the reference model at every visit of a prompt; `pool` samples
            `reference_pool_size` completions at the first visit and draws from their rewards later.
        reference_pool_size: completions in a prompt's pool; None = twice the group size.
        kwargs: the options of `RLVRModule`.
    """

    has_ratio = False

    def __init__(
        self,
        advantage: Advantage | str = "aapo",
        loss: Loss = Loss(aggregation="group_token_mean"),
        reference_rollouts: Literal["fresh", "pool"] = "fresh",
        reference_pool_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("[1, inf)", "model", reference_pool_size=reference_pool_size)
        requested = ReferenceCompletions(reference_rollouts, reference_pool_size)
        declared = self.reference_completions
        default = ReferenceCompletions()
        if declared is None and requested != default:
            raise UserError(
                "model.reference_rollouts, model.reference_pool_size: this advantage compares with no reference; leave "
                "them out, or use advantage: aapo"
            )
        if declared == default:
            self.reference_completions = requested
        elif declared is not None and requested not in (declared, default):
            raise UserError(
                f"model.reference_rollouts: {reference_rollouts}, but the advantage declares {declared.rollouts}; "
                "leave the option out"
            )

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return policy_gradient(x)
