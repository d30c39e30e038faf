"""GSPO: group sequence policy optimisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import (
    LossInputs,
    Stats,
    clipped_surrogate,
    log_ratio,
    masked_mean,
    row_sum,
)
from lit_rlvr.training.module import RLVRModule


class GSPO(RLVRModule):
    """`-(1/B) sum_i min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)`, `s = exp((1/n_i) sum_t (logp - old))`.

    Source: Zheng et al. 2025 (GSPO, arXiv 2507.18071), eqs. 5-7. The KL and entropy terms are sequence means.

    Example:
        ```yaml
        model: {class_path: GSPO, init_args: {clip_low: 0.0003, clip_high: 0.0004, updates_per_rollout: 4}}
        ```

    Args:
        clip_low: the sequence's ratio is clipped at 1 - clip_low.
        clip_high: the sequence's ratio is clipped at 1 + clip_high.
        dual_clip: bound the loss of negative advantages at this many |A|; None = off.
        kwargs: the options of `RLVRModule`.
    """

    sequence_level = True
    fixes_aggregation = True

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        clip_low: float = 3e-4,
        clip_high: float = 4e-4,
        dual_clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, **kwargs)
        check_within("[0, 1]", "model", clip_low=clip_low)
        check_within("[0, inf)", "model", clip_high=clip_high)
        check_within("(1, inf)", "model", dual_clip=dual_clip)
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        s = masked_mean(log_ratio(x.logp, x.old_logp, x.mask), x.mask).exp()[:, None]  # (B, 1)
        surrogate, stats = clipped_surrogate(s, x, self.clip_low, self.clip_high, self.dual_clip)
        return -row_sum(surrogate[:, 0], x), stats
