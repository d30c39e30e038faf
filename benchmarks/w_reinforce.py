"""A control for the study w_reinforce.yaml."""

from __future__ import annotations

from torch import Tensor

from lit_rlvr.advantages import GroupBatch, ReinforceAdvantage


def centred(group: GroupBatch) -> Tensor:
    """Return W-REINFORCE's advantages (P, G) minus their mean over the batch."""
    advantages = ReinforceAdvantage(positive_weight=0.1, negative_weight=1.0)(group)
    return advantages - advantages.mean()
