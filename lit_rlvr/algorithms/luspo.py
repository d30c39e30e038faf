"""LUSPO: length-unbiased sequence policy optimisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.gspo import GSPO
from lit_rlvr.objectives import LossInputs, Stats


class LUSPO(GSPO):
    """`-(1/B) sum_i n_i min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)`.

    This is GSPO with each sequence weighed by its number of tokens.

    Source: LUSPO (arXiv 2602.05261), with the bounds of its section 5.1, as in TRL. The KL and entropy terms are
    sequence means.

    Example:
        ```yaml
        model: {class_path: LUSPO, init_args: {clip_low: 0.002, clip_high: 0.0025, updates_per_rollout: 4}}
        ```

    Args:
        clip_low: the sequence's ratio is clipped at 1 - clip_low.
        clip_high: the sequence's ratio is clipped at 1 + clip_high.
        kwargs: the options of `GSPO`.
    """

    def __init__(
        self, advantage: Advantage | str = "grpo", clip_low: float = 2e-3, clip_high: float = 2.5e-3, **kwargs: Any
    ) -> None:
        super().__init__(advantage=advantage, clip_low=clip_low, clip_high=clip_high, **kwargs)

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        return super().objective(replace(x, row_weight=x.row_weight * x.mask.sum(1)))
