"""Advantages that are controls in the studies aapo_margin.yaml and w_reinforce.yaml."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lit_rlvr.advantages import AAPOAdvantage, GroupBatch, ReinforceAdvantage


@dataclass
class ShuffledMargin(AAPOAdvantage):
    """AAPO's advantages with every prompt's reference rewards taken from the next prompt of the batch."""

    def __call__(self, groups: GroupBatch) -> Tensor:
        assert groups.reference_rewards is not None
        return super().__call__(replace(groups, reference_rewards=groups.reference_rewards.roll(1, 0)))


@dataclass
class ConstantMargin(AAPOAdvantage):
    """`A + E clip(r - s)`, the mean over all reference rewards s of the batch: the margin is the same for all right
    answers of the batch, and the same for all wrong ones, and on average as large as a shuffled one."""

    def __call__(self, groups: GroupBatch) -> Tensor:
        assert groups.reference_rewards is not None
        apart = groups.rewards[..., None] - groups.reference_rewards.to(groups.rewards.dtype).flatten()  # (P, G, P G)
        margin = apart.clamp(self.delta_low, self.delta_high).mean(-1)
        self._metrics = {"margin": float(margin.mean())}
        return self.base_advantages(groups) + margin


def centred(groups: GroupBatch) -> Tensor:
    """Return W-REINFORCE's advantages (P, G) minus their mean over the batch."""
    advantages = ReinforceAdvantage(positive_weight=0.1, negative_weight=1.0)(groups)
    return advantages - advantages.mean()
