"""APMPO's schedules: they adapt the exponent p and the upper clip to the rewards of a rollout.

Pure functions of (P,) tensors, one number per prompt; with batch statistics all P numbers are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_rlvr.advantages import GroupBatch
from lit_rlvr.advantages.base import group_std, impute
from lit_rlvr.common.arguments import check_within, option_group
from lit_rlvr.errors import UserError


@option_group("model.schedule")
@dataclass(frozen=True)
class PowerSchedule:
    """The schedule by which APMPO's exponent p and its upper clip follow the rewards; the defaults are the paper's.

    Args:
        power: a fixed p instead of the adaptive one; 1 is adaptive clipping without PMPO.
        power_schedule: `exp` is eq. 4, `linear` eq. 11.
        fss: stability score: `ratio` is mean over deviation, `mean` its numerator, `inverse_std` its denominator.
        delta: added to the standard deviation in the stability score.
        squash: `tanh` is eq. 6; `none` is Algorithm 1, kept within the bounds.
        statistics: over the `batch` (section 4), or over each `group` (Algorithm 1).
        statistics_from: statistics of the `reward`, or of `correct` for shaped rewards.
    """

    power: float | None = None
    power_schedule: Literal["exp", "linear"] = "exp"
    fss: Literal["ratio", "mean", "inverse_std"] = "ratio"
    delta: float = 1e-6
    squash: Literal["tanh", "none"] = "tanh"
    statistics: Literal["batch", "group"] = "batch"
    statistics_from: Literal["reward", "correct"] = "reward"

    def __post_init__(self) -> None:
        check_within("(0, inf)", "model.schedule", delta=self.delta)
        check_within("(-inf, inf)", "model.schedule", power=self.power)


def reward_statistics(
    groups: GroupBatch, source: Literal["reward", "correct"], scope: Literal["batch", "group"]
) -> tuple[Tensor, Tensor]:
    """Return the mean and population standard deviation (P,) of the rewards, over the batch or each prompt's group.

    Completions without a reward, or with `correct` those that are not judged, are left out.

    Source: APMPO, section 4.2-4.3 (batch) and Algorithm 1, lines 7-8 (group).

    Raises:
        UserError: a mean is negative, so the rewards are not in [0, 1].
    """
    values, known = groups.values(source)  # (P, G) each
    shape = (1, -1) if scope == "batch" else values.shape
    by_group = values.reshape(shape)
    known_by_group = known.reshape(shape)
    mean = impute(by_group, ~known_by_group).mean(1).flatten().expand(len(values))
    std = group_std(by_group, known_by_group).flatten().expand(len(values))
    if bool((mean < 0).any()):
        raise UserError(
            f"APMPO: the mean reward is {float(mean.min()):.4g}, but p and eps_ada need rewards in [0, 1]; "
            "use schedule: {statistics_from: correct}"
        )
    return mean, std


def adaptive_power(
    mean: Tensor, gamma: float, schedule: Literal["exp", "linear"], fixed: float | None = None
) -> Tensor:
    """Return `p = exp(-gamma mu)` (P,), or another schedule of it. Source: APMPO, eqs. 4 and 11.

    Args:
        mean: (P,) mu.
        gamma: how fast p falls with mu.
        schedule: `exp`, or `linear`: `1 - gamma mu`.
        fixed: p itself; None = by the schedule.
    """
    if fixed is not None:
        return torch.full_like(mean, fixed)
    if schedule == "exp":
        return torch.exp(-gamma * mean)
    return 1 - gamma * mean


def feedback_stability(
    mean: Tensor, std: Tensor, delta: float, kind: Literal["ratio", "mean", "inverse_std"]
) -> Tensor:
    """Return the feedback stability score `mu / (sigma + delta)` (P,), its numerator or its inverse denominator.

    Source: APMPO, eq. 5, section 5.2.3.

    Args:
        mean: (P,) mu.
        std: (P,) sigma.
        delta: added to sigma.
        kind: the whole score (`ratio`), its numerator (`mean`), or its inverse denominator (`inverse_std`).
    """
    if kind == "mean":
        return mean
    return (mean if kind == "ratio" else torch.ones_like(mean)) / (std + delta)


def adaptive_clip(fss: Tensor, eps_min: float, eps_max: float, squash: Literal["tanh", "none"]) -> Tensor:
    """Return `eps_ada = eps_min + (eps_max - eps_min) tanh(FSS)` (P,). Source: APMPO, eq. 6.

    Args:
        fss: (P,) the feedback stability score.
        eps_min, eps_max: the range of the result.
        squash: `none` caps the score at 1 instead of tanh (Algorithm 1, line 18).
    """
    return eps_min + (eps_max - eps_min) * (fss.tanh() if squash == "tanh" else fss.clamp(0, 1))


def check_bounds(eps_low: float, eps_min: float, eps_max: float, adaptive_lower: bool) -> None:
    """Refuse clip ranges that contain no ratio.

    Raises:
        UserError: a clip is out of range; the message says which.
    """
    check_within("[0, 1)", "model", eps_low=eps_low)  # the ratio is clipped at 1 - eps_low
    check_within("[0, inf)", "model", eps_min=eps_min, eps_max=eps_max)
    if eps_min > eps_max:
        raise UserError(f"model.eps_min: eps_min <= eps_max must hold, got {eps_min} and {eps_max}")
    if adaptive_lower and eps_max >= 1:
        raise UserError(f"model.eps_max: {eps_max} must be below 1 with adaptive_lower: the clip is at 1 - eps_ada")
