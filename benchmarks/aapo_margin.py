"""Controls of AAPO's margin for the study aapo_margin.yaml: what of it comes from the prompt's own references?"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lit_rlvr.advantages import AAPOAdvantage, GroupBatch


@dataclass
class ShuffledMargin(AAPOAdvantage):
    """AAPO's advantages with every prompt's reference rewards taken from the next prompt of the batch."""

    def __call__(self, group: GroupBatch) -> Tensor:
        assert group.reference_rewards is not None
        return super().__call__(replace(group, reference_rewards=group.reference_rewards.roll(1, 0)))


@dataclass
class ConstantMargin(AAPOAdvantage):
    """`A + E clip(r - s)`, the mean over all reference rewards s of the batch: the margin is the same for all right
    answers of the batch, and the same for all wrong ones, and on average as large as a shuffled one."""

    def __call__(self, group: GroupBatch) -> Tensor:
        assert group.reference_rewards is not None
        apart = group.rewards[..., None] - group.reference_rewards.to(group.rewards.dtype).flatten()  # (P, G, P G)
        margin = apart.clamp(self.delta_low, self.delta_high).mean(-1)
        self._metrics = {"margin": float(margin.mean())}
        return self.base_advantages(group) + margin
