"""GRPO-LEAD: length- and difficulty-aware GRPO."""

from __future__ import annotations

from typing import Any

from lit_rlvr.advantages import Advantage
from lit_rlvr.algorithms.grpo import GRPO


class GRPOLead(GRPO):
    """GRPO's loss with length-shaped, difficulty-weighted advantages.

    Source: Zhang & Zuo 2025 (GRPO-LEAD, arXiv 2504.09696).

    Example:
        ```yaml
        model: {class_path: GRPOLead, init_args: {advantage: {class_path: GRPOLeadAdvantage, init_args: {alpha: 0.05}}}}
        ```

    Args:
        kwargs: the options of `GRPO`.
    """

    def __init__(self, advantage: Advantage | str = "grpo_lead", **kwargs: Any) -> None:
        super().__init__(advantage=advantage, **kwargs)
