"""DPPO: divergence proximal policy optimisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage
from lit_rlvr.common.arguments import check_within
from lit_rlvr.objectives import Divergence, LossInputs, Stats, log_ratio, masked_sum, trust_region_divergence
from lit_rlvr.options import Loss
from lit_rlvr.training.module import RLVRModule

RECOMMENDED: dict[Divergence, float] = {"tv": 0.2, "kl": 0.05}


class DPPO(RLVRModule):
    """`-(1/N) sum_i sum_t M r A`, with r the ratio to the policy mu that sampled the token, and no clip.

    M drops a token whose probability has already moved too far from mu in the direction in which A pushes it, by the
    divergence of "this token or another one": `tv` is `|pi - mu|`, `kl` that of mu from pi.

    Source: Qi et al. 2026 (DPPO, arXiv 2602.04879), eqs. 13 (tv) and 14 (kl), as in SkyRL. prime-rl's default loss is
    `tv` with `drift_coef: 1e-3`.

    Example:
        ```yaml
        model: {class_path: DPPO, init_args: {divergence: kl, updates_per_rollout: 4}}
        ```

    Args:
        divergence: `tv` or `kl`.
        delta_low: largest divergence where A < 0; None = 0.2 for `tv`, 0.05 for `kl`.
        delta_high: largest divergence where A > 0; None = the same.
        drift_coef: weight of `(log r)^2`, a penalty on all tokens (Kimi K2.5, prime-rl's kl_tau).
        kwargs: the options of `RLVRModule`.
    """

    uses_rollout = True

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        loss: Loss = Loss(aggregation="token_mean"),
        divergence: Divergence = "tv",
        delta_low: float | None = None,
        delta_high: float | None = None,
        drift_coef: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, loss=loss, **kwargs)
        check_within("[0, inf)", "model", delta_low=delta_low, delta_high=delta_high, drift_coef=drift_coef)
        self.divergence = divergence
        if delta_low is None:
            self.delta_low = RECOMMENDED[divergence]
        else:
            self.delta_low = delta_low
        if delta_high is None:
            self.delta_high = RECOMMENDED[divergence]
        else:
            self.delta_high = delta_high
        self.drift_coef = drift_coef

    @property
    def trains_all_rows(self) -> bool:
        return super().trains_all_rows or self.drift_coef != 0

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        d = log_ratio(x.logp, x.rollout_logp, x.mask)  # (B, T)
        moved, distance = trust_region_divergence(x.logp.detach(), x.rollout_logp, x.mask, self.divergence)
        below = (x.advantages < 0) & (moved < 0) & (distance > self.delta_low)
        above = (x.advantages > 0) & (moved > 0) & (distance > self.delta_high)
        loss = -masked_sum(d.exp() * x.advantages * ~(below | above), x.token_weight, x.mask)
        if self.drift_coef:
            loss = loss + self.drift_coef * masked_sum(d.square(), x.plain_weight, x.mask)
        return loss, {"clip_low": below.sum(), "clip_high": above.sum()}
