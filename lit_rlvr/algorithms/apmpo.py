"""APMPO: adaptive power-mean policy optimisation."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lit_rlvr.advantages import Advantage, GroupBatch
from lit_rlvr.algorithms import apmpo_schedule as schedule
from lit_rlvr.errors import check_within
from lit_rlvr.objectives import LossInputs, Stats, check_dual_clip, clipped_log_ratio, log_power_mean, row_sum
from lit_rlvr.training.module import RLVRModule


class APMPO(RLVRModule):
    """`-(1/B) sum_i sign(A) [(1/n_i) sum_t phi^p]^(1/p)`, `phi = |min(w A, clip(w, 1 - eps_low, 1 + eps_ada) A)|`.

    A is constant in a sequence, so each term is `A` times the power mean of the ratios that `min` selects, computed in
    log space. p and eps_ada follow the rewards of the whole rollout (`apmpo_schedule.py`).

    Source: APMPO (arXiv 2605.04066), eqs. 4-10; ablations: section 5.2.3, eq. 11 and appendix K.4, eq. 81. The KL and
    entropy terms are sequence means.

    Args:
        gamma: how fast p falls with the mean reward.
        eps_low: the ratio is clipped at 1 - eps_low.
        eps_min: lower bound of eps_ada; the ratio is clipped at 1 + eps_ada.
        eps_max: upper bound of eps_ada; eps_min = eps_max is PMPO without adaptive clipping.
        delta: added to the standard deviation in the stability score.
        power: a fixed p instead of the adaptive one; 1 is adaptive clipping without PMPO.
        power_schedule: `exp` is eq. 4, `linear` eq. 11.
        squash: `tanh` is eq. 6; `none` is Algorithm 1, kept within the bounds.
        fss: stability score: `ratio` is mean over deviation, `mean` its numerator, `inverse_std` its denominator.
        adaptive_lower: clip below at 1 - eps_ada instead of 1 - eps_low.
        statistics: over the `batch` (section 4), or over each `group` (Algorithm 1).
        statistics_from: statistics of the `reward`, or of `correct` for shaped rewards.
        dual_clip: upper bound of token ratios where the advantage is negative; None = off.
    """

    needs_updates, sequence_level = True, True

    def __init__(
        self, advantage: Advantage | str = "grpo", kl_coef: float = 0.001, gamma: float = 0.8, eps_low: float = 0.2,
        eps_min: float = 0.2, eps_max: float = 0.4, delta: float = 1e-6, power: float | None = None,
        power_schedule: Literal["exp", "linear"] = "exp", squash: Literal["tanh", "none"] = "tanh",
        fss: Literal["ratio", "mean", "inverse_std"] = "ratio", adaptive_lower: bool = False,
        statistics: Literal["batch", "group"] = "batch", statistics_from: Literal["reward", "correct"] = "reward",
        dual_clip: float | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(advantage=advantage, aggregation="sequence_mean", kl_coef=kl_coef, **kwargs)
        check_within("[0, inf)", "model", gamma=gamma)
        check_within("(0, inf)", "model", delta=delta)
        check_within("(-inf, inf)", "model", power=power)
        check_dual_clip(dual_clip)
        schedule.check_bounds(eps_low, eps_min, eps_max, adaptive_lower)
        self.gamma, self.eps_low, self.eps_min, self.eps_max, self.delta = gamma, eps_low, eps_min, eps_max, delta
        self.power, self.power_schedule, self.squash, self.fss = power, power_schedule, squash, fss
        self.adaptive_lower, self.statistics, self.statistics_from = adaptive_lower, statistics, statistics_from
        self.dual_clip = dual_clip

    def observe(self, group: GroupBatch) -> dict[str, float]:
        mu, sigma = schedule.reward_statistics(group, self.statistics_from, self.statistics)
        fss = schedule.feedback_stability(mu, sigma, self.delta, self.fss)
        self._p = schedule.adaptive_power(mu, self.gamma, self.power_schedule, self.power)  # (P,)
        self._eps = schedule.adaptive_clip(fss, self.eps_min, self.eps_max, self.squash)  # (P,)
        return {"p": float(self._p.mean()), "fss": float(fss.mean()), "eps_ada": float(self._eps.mean())}

    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        p, eps = self._p[x.prompt], self._eps[x.prompt, None]  # (B,), (B, 1)
        low = eps if self.adaptive_lower else eps.new_full(eps.shape, self.eps_low)
        log_v, stats = clipped_log_ratio(x, (-low).log1p(), eps.log1p(), self.dual_clip)
        return -row_sum(x.advantages[:, 0] * log_power_mean(log_v, x.mask, p).exp(), x), stats
