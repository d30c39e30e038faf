"""APMPO: adaptive power-mean policy optimisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlvr.advantages import Advantage, GroupBatch
from lit_rlvr.algorithms import apmpo_schedule as paper
from lit_rlvr.algorithms.apmpo_schedule import PowerSchedule
from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.init_arguments import with_class_defaults
from lit_rlvr.objectives import LossInputs, Stats, clipped_log_ratio, log_power_mean, row_sum
from lit_rlvr.options import KL
from lit_rlvr.training.module import RLVRModule


class APMPO(RLVRModule):
    """`-(1/B) sum_i sign(A) [(1/n_i) sum_t phi^p]^(1/p)`, `phi = |min(w A, clip(w, 1 - eps_low, 1 + eps_ada) A)|`.

    A is constant in a sequence, so each term is `A` times the power mean of the ratios that `min` selects, computed in
    log space. p and eps_ada follow the rewards of the whole rollout (`apmpo_schedule.py`).

    Source: APMPO (arXiv 2605.04066), eqs. 4-10; ablations: section 5.2.3, eq. 11 and appendix K.4, eq. 81. The KL and
    entropy terms are sequence means.

    Example:
        ```yaml
        model:
          class_path: APMPO
          init_args: {updates_per_rollout: 4, schedule: {statistics_from: correct}}
        ```

    Args:
        gamma: how fast p falls with the mean reward.
        eps_low: the ratio is clipped at 1 - eps_low.
        eps_min: lower bound of eps_ada; the ratio is clipped at 1 + eps_ada.
        eps_max: upper bound of eps_ada; eps_min = eps_max is PMPO without adaptive clipping.
        adaptive_lower: clip below at 1 - eps_ada instead of 1 - eps_low.
        schedule: how p and eps_ada follow the rewards; the paper's ablations.
        dual_clip: upper bound of token ratios where the advantage is negative; None = off.
        kwargs: the options of `RLVRModule`.
    """

    needs_updates = True
    sequence_level = True
    fixes_aggregation = True

    def __init__(
        self,
        advantage: Advantage | str = "grpo",
        kl: KL = KL(coef=0.001),
        gamma: float = 0.8,
        eps_low: float = 0.2,
        eps_min: float = 0.2,
        eps_max: float = 0.4,
        adaptive_lower: bool = False,
        dual_clip: float | None = None,
        schedule: PowerSchedule = PowerSchedule(),
        **kwargs: Any,
    ) -> None:
        super().__init__(advantage=advantage, kl=kl, **kwargs)
        check_within("[0, inf)", "model", gamma=gamma)
        check_within("(1, inf)", "model", dual_clip=dual_clip)
        paper.check_bounds(eps_low, eps_min, eps_max, adaptive_lower)
        self.gamma = gamma
        self.eps_low = eps_low
        self.eps_min = eps_min
        self.eps_max = eps_max
        self.adaptive_lower = adaptive_lower
        self.dual_clip = dual_clip
        (self.schedule,) = with_class_defaults(type(self), schedule=schedule).values()

    def observe(self, groups: GroupBatch) -> dict[str, float]:
        mu, sigma = paper.reward_statistics(groups, self.schedule.statistics_from, self.schedule.statistics)
        fss = paper.feedback_stability(mu, sigma, self.schedule.delta, self.schedule.fss)
        self._p = paper.adaptive_power(mu, self.gamma, self.schedule.power_schedule, self.schedule.power)  # (P,)
        self._eps = paper.adaptive_clip(fss, self.eps_min, self.eps_max, self.schedule.squash)  # (P,)
        return {"p": float(self._p.mean()), "fss": float(fss.mean()), "eps_ada": float(self._eps.mean())}

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        p = self._p[x.prompt]  # (B,)
        eps = self._eps[x.prompt, None]  # (B, 1)
        if self.adaptive_lower:
            low = eps
        else:
            low = eps.new_full(eps.shape, self.eps_low)
        log_v, stats = clipped_log_ratio(x, (-low).log1p(), eps.log1p(), self.dual_clip)
        return -row_sum(x.advantages[:, 0] * log_power_mean(log_v, x.mask, p).exp(), x), stats
