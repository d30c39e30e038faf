"""REINFORCE, whose advantage turns it into W-REINFORCE, PSR, NSR or RLOO."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.objectives import LossInputs, Stats, policy_gradient
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class Reinforce(RLVRModule):
    """`-(1/N) sum_i sum_t A logp`.

    Source: Zhu et al. 2025 (the effectiveness of negative reinforcement, arXiv 2506.01347); Williams 1992 (REINFORCE).

    Example:
        ```yaml
        model: {class_path: Reinforce, init_args: {advantage: rloo, loss: {entropy_coef: 0.001}}}
        ```

    Args:
        kwargs: the options of `RLVRModule`.
    """

    has_ratio = False

    def __init__(
        self, advantage: Advantage | str = "reinforce", loss: Loss = Loss(aggregation="token_mean"), **kwargs: Any
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return policy_gradient(x)
