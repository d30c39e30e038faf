"""AAPO: advantage-augmented policy optimisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.base import RLVRModule
from lit_rlvr.objectives import Aggregation, LossInputs, Stats, policy_gradient


class AAPO(RLVRModule):
    """`-(1/P) sum_p (1/sum_g n) sum_g sum_t A logp`, A with a margin over the reference model's rewards.

    Source: AAPO, eqs. 4-5.

    Args:
        advantage: estimator: a registered name, a class_path, or a dotted path to a function.
        aggregation: how tokens are averaged.
    """

    has_ratio = False

    def __init__(
        self, advantage: Advantage | str = "aapo", aggregation: Aggregation = "group_token_mean", **kwargs: Any
    ) -> None:
        super().__init__(advantage=advantage, aggregation=aggregation, **kwargs)

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return policy_gradient(x)
