"""GMPO: geometric-mean policy optimisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, clipped_log_ratio, masked_mean, row_sum
from lit_rlvr.training.module import RLVRModule


class GMPO(RLVRModule):
    """`-(1/B) sum_i A exp((1/n_i) sum_t q)`, q the clipped log-ratio: the geometric mean of a sequence's ratios.

    Source: Zhao et al. 2025 (GMPO, arXiv 2507.20673); APMPO, eq. 14, lacks the outer sign exponent. The KL and entropy
    terms are sequence means.

    Example:
        ```yaml
        model: {class_path: GMPO, init_args: {clip_low: 0.4, clip_high: 0.4, updates_per_rollout: 4}}
        ```

    Args:
        clip_low: the log-ratio is clipped at -clip_low.
        clip_high: the log-ratio is clipped at clip_high.
        dual_clip: upper bound of token ratios where the advantage is negative; None = off.
        kwargs: the options of `RLVRModule`.
    """

    needs_updates = True
    sequence_level = True
    fixes_aggregation = True

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        clip_low: float = 0.4,
        clip_high: float = 0.4,
        dual_clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, **kwargs)
        check_within("[0, inf)", "model", clip_low=clip_low, clip_high=clip_high)
        check_within("(1, inf)", "model", dual_clip=dual_clip)
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        q, stats = clipped_log_ratio(x, -self.clip_low, self.clip_high, self.dual_clip)
        return -row_sum(x.advantages[:, 0] * masked_mean(q, x.mask).exp(), x), stats
