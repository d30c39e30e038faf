"""Dr. GRPO: GRPO done right."""

from __future__ import annotations

from typing import Any

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.grpo import GRPO
from lit_rlvr.options import Loss


class DrGRPO(GRPO):
    """`-(1/(B T_max)) sum_i sum_t min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`, A not divided by its deviation.

    T_max is the configured maximum completion length, so the loss has no length bias.

    Source: Liu et al. 2025 (Understanding R1-Zero-like training, arXiv 2503.20783), section 3.2.

    Example:
        ```yaml
        model: {class_path: DrGRPO, init_args: {lr: 1.0e-6, updates_per_rollout: 2}}
        ```

    Args:
        kwargs: the options of `GRPO`.
    """

    def __init__(
        self, advantage: Advantage | str = "dr_grpo", loss: Loss = Loss(aggregation="constant"), **kwargs: Any
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
