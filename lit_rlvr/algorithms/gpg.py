"""GPG: group policy gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.objectives import Aggregation, LossInputs, Stats, policy_gradient
from lit_rlvr.training.module import RLVRModule


class GPG(RLVRModule):
    """`-(1/N) sum_i sum_t A logp`: no ratio, no clip.

    Source: Chu et al. 2025 (GPG, arXiv 2504.02546); AAPO, eq. 3, writes `aggregation: group_token_mean`.

    Args:
        advantage: estimator: a registered name, a class_path, or a dotted path to a function.
        aggregation: how tokens are averaged.
    """

    has_ratio = False

    def __init__(
        self, advantage: Advantage | str = "gpg", aggregation: Aggregation = "token_mean", **kwargs: Any
    ) -> None:
        super().__init__(advantage=advantage, aggregation=aggregation, **kwargs)

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return policy_gradient(x)
