"""An algorithm: a LightningModule with its loss. `config.yaml` names it by its class_path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlvr import Advantage, Loss, LossInputs, RLVRModule, Stats, check_within, masked_sum, ratio


class UpperClip(RLVRModule):
    """`-(1/N) sum_i sum_t u A`, u the ratio, at most `1 + clip` where A > 0: GRPO's surrogate without the lower clip.

    Args:
        advantage: the estimator of advantages, as a class or by its name.
        loss: options of the loss.
        clip: the ratio is clipped at 1 + clip where the advantage is positive.
    """

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(aggregation="token_mean"),
        clip: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("[0, inf)", "model", clip=clip)
        self.clip = clip

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        """Return a sum over the rows in `x` weighted by `x.token_weight`, so that no split of the batch changes it."""
        w = ratio(x.logp, x.old_logp, x.mask)  # (B, T)
        high = (w > 1 + self.clip) & (x.advantages > 0) & x.mask
        surrogate = torch.where(high, 1 + self.clip, w) * x.advantages
        return -masked_sum(surrogate, x.token_weight, x.mask), {"clip_high": high.sum()}
