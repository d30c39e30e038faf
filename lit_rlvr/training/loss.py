"""The mathematics of an algorithm: from rewards to advantages, and from log-probabilities to a loss.

Training (`training/module.py`) and the replay of a frozen batch (`parity/replay.py`) both use it. An algorithm
overrides `objective`, and `observe` if its loss depends on statistics of the whole rollout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from lit_rlvr.advantages import Advantage, GroupBatch, resolve_advantage
from lit_rlvr.common.returned import require_advantages, require_loss
from lit_rlvr.errors import UserError, check_takes, check_within, defined_at, type_text
from lit_rlvr.objectives import Aggregation, LossInputs, Stats, k3, masked_sum, ratio


class LossModule(ABC):
    """The advantage estimator and the loss; see `RLVRModule` for the options.

    Attributes:
        has_ratio: False = the loss is right only on the sampling policy, so with one update per rollout.
        needs_updates: True = with one update per rollout its gradient is GRPO's.
        stops_gradient: True = the objective detaches values on purpose; `lit-rlvr check` holds them fixed.
    """

    has_ratio: ClassVar[bool] = True
    needs_updates: ClassVar[bool] = False
    stops_gradient: ClassVar[bool] = False

    def __init__(
        self, advantage: Advantage | str, aggregation: Aggregation, kl_coef: float, entropy_coef: float,
        kl_bias_correction: bool,
    ) -> None:  # fmt: skip
        check_within("[0, inf)", "model", kl_coef=kl_coef)
        check_within("(-inf, inf)", "model", entropy_coef=entropy_coef)
        check_takes(self.objective, "x")
        check_takes(self.observe, "group")
        self.aggregation, self.advantage = aggregation, resolve_advantage(advantage)
        self.kl_coef, self.entropy_coef, self.kl_bias_correction = kl_coef, entropy_coef, kl_bias_correction

    @abstractmethod
    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        """Return the loss of some rows: a sum that includes the global normalisers, without the KL and entropy terms.

        Returns:
            The loss, a scalar, and counts or sums over the unmasked tokens, which are logged as means over tokens.
        """

    def observe(self, group: GroupBatch) -> dict[str, float]:
        """Take note of the whole rollout's rewards (all ranks) before its updates.

        Returns:
            Metrics to log as `train/...`.
        """
        return {}

    def estimate(self, group: GroupBatch) -> tuple[Tensor, dict[str, float]]:
        """Return advantages (P, G) of the whole rollout (all ranks), and metrics to log as `train/...`.

        Raises:
            UserError: the estimator returns no tensor, the wrong shape, or values that are not finite.
        """
        observed = self.observe(group)
        if not isinstance(observed, dict):
            raise UserError(
                f"model: {defined_at(self.observe)} must return a dict of metrics, not {type_text(observed)}"
            )
        advantages = require_advantages(self.advantage, self.advantage(group), group.rewards)
        rewarded = advantages[group.rewarded]
        return advantages, observed | self.advantage.metrics | {
            "advantage": float(rewarded.mean()),
            "zero_advantage": float((rewarded == 0).double().mean()),
            "advantage_positive_mass": float(rewarded.clamp(min=0).mean()),
            "advantage_negative_mass": float(-rewarded.clamp(max=0).mean()),
        }

    def loss(self, x: LossInputs) -> tuple[Tensor, Stats]:
        """Return the objective plus the KL term minus the entropy bonus, for some rows of one optimizer step.

        Raises:
            UserError: the objective does not return a loss with a gradient and statistics, or an entropy bonus is
                given without a model.
        """
        loss, stats = require_loss(self.objective, self.objective(x), x)
        if x.ref is not None:
            kl = k3(x.logp, x.ref, x.mask)
            if self.kl_bias_correction:
                kl = kl * ratio(x.logp, x.old, x.mask)
            loss = loss + self.kl_coef * masked_sum(kl, x.plain_weight, x.mask)
            stats = stats | {"kl": kl.detach().sum()}
        if self.entropy_coef:
            if x.entropy is None:
                raise UserError("model.entropy_coef: the entropy needs a model; use 0")
            loss = loss - self.entropy_coef * masked_sum(x.entropy, x.plain_weight, x.mask)
        return loss, stats
