"""An advantage, which turns the rewards of groups into weights of their completions. `config.yaml` names it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_rlvr.advantages import Advantage, GroupBatch
from lit_rlvr.errors import check_within


@dataclass
class Hardest(Advantage):
    """`(r - mu) (1 - p)^sharpness`, p the group's share of correct completions: hard questions count more.

    Args:
        sharpness: 0 weights all questions alike.
    """

    sharpness: float = 0.5

    def __post_init__(self) -> None:
        check_within("[0, inf)", "advantage", sharpness=self.sharpness)

    @property
    def min_group(self) -> int:
        return 2

    def __call__(self, group: GroupBatch) -> Tensor:
        """Return (P, G) advantages of (P, G) rewards; row p holds the completions of question p."""
        centred = group.rewards - group.rewards.mean(1, keepdim=True)
        return centred * (1 - group.success) ** self.sharpness
