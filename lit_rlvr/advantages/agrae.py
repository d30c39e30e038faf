"""A-GRAE: asymmetric group relative advantage estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_rlvr.advantages.base import GroupBatch, impute, register
from lit_rlvr.advantages.composed import Composed, inverse_sqrt, rescaled
from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.log import log
from lit_rlvr.errors import UserError

_ROUNDING = 1e-6  # means of rewards in [0, 1] may leave the interval by this much


@register("agrae")
@dataclass
class AGRAE(Composed):
    """`A1 = omega/2 A/sqrt(p) + (1 - omega)/2 A/sqrt(1 - p)`, times `min(1, omega/alpha)` where positive.

    A is the base estimator's advantage and omega the policy's proficiency. A1 is the sample level, which shifts weight
    from easy to hard groups and leaves A unchanged where p is 0 or 1. The factor is the group level, which dampens
    correct answers early on.

    Source: Yu et al. 2026 (A-GRAE, arXiv 2602.05548), eqs. 11-13.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: AGRAE, init_args: {base: dr_grpo, omega_scope: ema}}
        ```

    Args:
        alpha: proficiency from which positive advantages count in full (1 for MATH, 0.5 for Geo3K and medical).
        sample_level: weigh A by omega/2 / sqrt(p) + (1 - omega)/2 / sqrt(1 - p).
        group_level: multiply positive advantages by min(1, omega/alpha).
        omega_from: omega is the batch's mean of `correct`, or of the `reward` (eq. 11 read literally), over the
            completions that have one; a batch without any leaves it as it was.
        p_from: p is the group's mean of `correct`, or of the `reward`.
        omega_scope: `batch`, or `ema`: an exponential moving average over rollouts, starting with the first one.
        ema_decay: weight of the past in the moving average.
        omega_floor: lower bound of omega.
    """

    alpha: float = 1.0
    sample_level: bool = True
    group_level: bool = True
    omega_from: Literal["correct", "reward"] = "correct"
    p_from: Literal["correct", "reward"] = "correct"
    omega_scope: Literal["batch", "ema"] = "batch"
    ema_decay: float = 0.9
    omega_floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("(0, 1]", "advantage agrae", alpha=self.alpha)
        check_within("[0, 1]", "advantage agrae", omega_floor=self.omega_floor)
        check_within("[0, 1)", "advantage agrae", ema_decay=self.ema_decay)
        self._omega: float | None = None  # the last omega; with `ema` the average so far
        self._warned = False

    def __call__(self, groups: GroupBatch) -> Tensor:
        advantages = self.base_advantages(groups)
        values, known = groups.values(self.p_from)
        p = self._rates(impute(values, ~known), "p_from")
        omega = self._update(groups)
        if self.sample_level:
            factor = omega / 2 * inverse_sqrt(p) + (1 - omega) / 2 * inverse_sqrt(1 - p)
            advantages = rescaled(advantages, factor, p)
        if self.group_level:
            positive = advantages > 0
            if omega == 0 and bool(positive.any()) and not self._warned:
                log.warning(
                    "A-GRAE: omega is 0 (no completion is correct), so positive advantages vanish while negative "
                    "ones stay; set omega_floor to avoid this"
                )
                self._warned = True
            advantages = torch.where(positive, advantages * min(1.0, omega / self.alpha), advantages)
        return advantages

    def _update(self, groups: GroupBatch) -> float:
        """Record a rollout and return the omega to use."""
        values, known = groups.values(self.omega_from)
        if not known.any():
            return max(self._omega or 0.0, self.omega_floor)
        whole = impute(values.reshape(1, -1), ~known.reshape(1, -1)).view_as(values)
        omega = float(self._rates(whole, "omega_from").double().mean())
        if self.omega_scope == "ema" and self._omega is not None:
            omega = self.ema_decay * self._omega + (1 - self.ema_decay) * omega
        self._omega = omega
        return max(omega, self.omega_floor)

    @staticmethod
    def _rates(values: Tensor, option: str) -> Tensor:
        """Return each group's mean (P, 1) of values (P, G), in [0, 1].

        Raises:
            UserError: rewards do not average to a rate.
        """
        rates = values.mean(1, keepdim=True)
        if bool(((rates < -_ROUNDING) | (rates > 1 + _ROUNDING)).any()):
            raise UserError(
                f"advantage agrae: with {option}: reward the mean reward of a group must lie in [0, 1], "
                f"found {float(rates.min()):.4g} to {float(rates.max()):.4g}; use {option}: correct"
            )
        return rates.clamp(0, 1)

    @property
    def metrics(self) -> dict[str, float]:
        if self._omega is None:
            omega = {}
        else:
            omega = {"omega": max(self._omega, self.omega_floor)}
        return super().metrics | omega

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"omega": self._omega}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._omega = state["omega"]
