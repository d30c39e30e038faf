"""GRPO: group relative policy optimisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import LossInputs, Stats, clipped_surrogate, masked_sum, ratio
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule


class GRPO(RLVRModule):
    """`-(1/B) sum_i (1/n_i) sum_t min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)`.

    w = exp(logp - old_logp) is the ratio of a token's probability to that at the beginning of the iteration, A its
    advantage, n_i the number of tokens of completion i in the loss, B the number of completions. If `kl.coef` is above
    0, the KL term is added.

    Source: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), eq. 3; Yu et al. 2026 (A-GRAE), eq. 1.

    Example:
        ```yaml
        model: {class_path: GRPO, init_args: {clip_high: 0.28, kl: {coef: 0.001}, updates_per_rollout: 2}}
        ```

    Args:
        clip_low: the ratio is clipped at 1 - clip_low.
        clip_high: the ratio is clipped at 1 + clip_high.
        dual_clip: bound the loss of negative advantages at this many |A|; None = off.
        kwargs: the options of `RLVRModule`.
    """

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(),
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("[0, 1]", "model", clip_low=clip_low)
        check_within("[0, inf)", "model", clip_high=clip_high)
        check_within("(1, inf)", "model", dual_clip=dual_clip)
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        w = ratio(x.logp, x.old_logp, x.mask)  # (B, T)
        surrogate, stats = clipped_surrogate(w, x, self.clip_low, self.clip_high, self.dual_clip)
        return -masked_sum(surrogate, x.token_weight, x.mask), stats
