"""An algorithm as mathematics: from a rollout's rewards to advantages, from log-probabilities to a loss.

Training (`base.py`) and the replay of frozen numbers (`parity.py`) both go through here. An algorithm
overrides `objective`, and `observe` if its loss depends on the whole rollout's statistics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from lit_rlvr.advantages import Advantage, GroupBatch, resolve_advantage
from lit_rlvr.algorithms.evaluation import EvaluatingModule
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import Aggregation, LossInputs, Stats, k3, masked_sum


class LossModule(EvaluatingModule, ABC):
    """The advantage estimator and the loss; see `RLVRModule` for the options."""

    has_ratio: ClassVar[bool] = True  # False: right only on the policy that sampled, so with one update per rollout
    needs_updates: ClassVar[bool] = False  # True: with one update per rollout its gradient is GRPO's

    def __init__(
        self, model: str, advantage: Advantage | str, aggregation: Aggregation, kl_coef: float, entropy_coef: float
    ) -> None:
        super().__init__(model)
        self.aggregation, self.advantage = aggregation, resolve_advantage(advantage)
        self.kl_coef, self.entropy_coef = kl_coef, entropy_coef
        if kl_coef < 0:
            raise UserError(f"model.kl_coef: {kl_coef} is negative")

    @abstractmethod
    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        """The loss of some rows: a sum that already carries the global normalisers, without the KL term.

        Returns:
            The loss, and counts or sums over the unmasked tokens, which are logged as means.
        """

    def observe(self, group: GroupBatch) -> dict[str, float]:
        """Take in the whole rollout's statistics (all ranks) before its updates; metrics to log as `train/...`."""
        return {}

    def estimate(self, group: GroupBatch) -> tuple[Tensor, dict[str, float]]:
        """Advantages (P, G) of the whole rollout (all ranks), and metrics to log as `train/...`.

        Raises:
            UserError: the estimator gives the wrong shape, or numbers that are not finite.
        """
        observed = self.observe(group)
        advantages = self.advantage(group)
        shape = tuple(group.rewards.shape)
        if tuple(advantages.shape) != shape or not bool(advantages.isfinite().all()):
            raise UserError(f"model.advantage: {self.advantage} must give finite values of shape {shape}")
        return advantages, observed | self.advantage.metrics | {
            "advantage": float(advantages.mean()),
            "zero_advantage": float((advantages == 0).double().mean()),
            "advantage_positive_mass": float(advantages.clamp(min=0).mean()),
            "advantage_negative_mass": float(-advantages.clamp(max=0).mean()),
        }

    def loss(self, x: LossInputs) -> tuple[Tensor, Stats]:
        """The objective plus the KL term minus the entropy bonus, of some rows of one optimizer step."""
        loss, stats = self.objective(x)
        if x.ref is not None:
            kl = k3(x.logp, x.ref, x.mask)
            loss = loss + self.kl_coef * masked_sum(kl, x.plain_weight, x.mask)
            stats = stats | {"kl": kl.detach().sum()}
        if self.entropy_coef:
            if x.entropy is None:
                raise UserError("model.entropy_coef: there is no entropy without a model; use 0")
            loss = loss - self.entropy_coef * masked_sum(x.entropy, x.plain_weight, x.mask)
        return loss, stats
