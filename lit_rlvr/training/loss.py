"""The mathematics of an algorithm: from rewards to advantages, and from log-probabilities to a loss.

Training (`training/module.py`) and the replay of a frozen batch (`commands/check/replay.py`) both use it. An
algorithm overrides `objective`, `observe` if its loss depends on statistics of the whole rollout, and `select` if it
chooses tokens of a whole step.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage, GroupBatch, resolve_advantage
from lit_rlvr.common.returned import (
    changed_fields,
    inputs_stay,
    require_advantages,
    require_choice,
    require_loss,
    require_metrics,
)
from lit_rlvr.errors import UserError, check_takes, check_within, defined_at, refuse_all
from lit_rlvr.objectives import (
    Aggregation,
    KLEstimator,
    LossInputs,
    Stats,
    StepTokens,
    kl_estimate,
    largest,
    masked_mean,
    masked_sum,
    ratio,
)

_log = logging.getLogger("lit_rlvr")


class LossModule(ABC):
    """The advantage estimator and the loss; see `RLVRModule` for the options.

    Attributes:
        has_ratio: False = the loss is right only on the sampling policy, so with one update per rollout.
        needs_updates: True = with one update per rollout its gradient is GRPO's.
        stops_gradient: True = the objective detaches values on purpose; `lit-rlvr check` holds them fixed.
        sequence_level: True = it weighs whole sequences, so it takes one advantage for each.
        uses_rollout: True = its ratio is to the policy that sampled each token (`x.rollout`), and it bounds that ratio
            itself, so that there is no importance correction.
    """

    has_ratio: ClassVar[bool] = True
    needs_updates: ClassVar[bool] = False
    stops_gradient: ClassVar[bool] = False
    sequence_level: ClassVar[bool] = False
    uses_rollout: ClassVar[bool] = False

    def __init__(
        self, advantage: Advantage | str, aggregation: Aggregation, count_empty_rows: bool, kl_coef: float,
        kl_estimator: KLEstimator, kl_in_reward: bool, kl_bias_correction: bool, entropy_coef: float,
        top_entropy_quantile: float,
    ) -> None:  # fmt: skip
        check_within("[0, inf)", "model", kl_coef=kl_coef)
        check_within("(-inf, inf)", "model", entropy_coef=entropy_coef)
        check_within("(0, 1]", "model", top_entropy_quantile=top_entropy_quantile)
        refuse_all(self._contradictions(kl_coef, kl_in_reward, kl_bias_correction, top_entropy_quantile))
        if aggregation == "group_token_mean" and not count_empty_rows:
            raise UserError("model.count_empty_rows: group_token_mean averages over groups; leave it at true")
        check_takes(self.objective, "x")
        check_takes(self.observe, "group")
        check_takes(self.select, "step")
        self.aggregation, self.advantage = aggregation, resolve_advantage(advantage)
        self.count_empty_rows = count_empty_rows
        self.kl_coef, self.kl_estimator, self.kl_in_reward = kl_coef, kl_estimator, kl_in_reward
        self.kl_bias_correction, self.entropy_coef = kl_bias_correction, entropy_coef
        self.top_entropy_quantile = top_entropy_quantile
        self._has_said_change = False  # that something changes its input

    def _contradictions(
        self, kl_coef: float, kl_in_reward: bool, kl_bias_correction: bool, top_entropy_quantile: float
    ) -> Iterator[str]:
        if kl_in_reward and not kl_coef:
            yield "model.kl_in_reward: there is no KL term; set model.kl_coef above 0"
        if kl_in_reward and kl_bias_correction:
            yield "model.kl_bias_correction: it corrects the loss's KL term, which model.kl_in_reward replaces; set one"
        if self.sequence_level and top_entropy_quantile < 1:
            yield f"model.top_entropy_quantile: {type(self).__name__} weighs whole sequences; leave it at 1"

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl_coef > 0 and not self.kl_in_reward

    @property
    def runs_all_rows(self) -> bool:
        """Whether rows with advantage 0 have a gradient too, by the KL term or the entropy bonus."""
        return self.kl_in_loss or self.entropy_coef != 0

    @property
    def needs_step_tokens(self) -> bool:
        """Whether some tokens are chosen by all tokens of a step: by `select`, or by their entropy."""
        return type(self).select is not LossModule.select or self.top_entropy_quantile < 1

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

    def select(self, step: StepTokens) -> Tensor | None:
        """Choose tokens by a threshold over all tokens of an optimizer step, before its micro-batches; the objective
        finds them in `x.selected`. It must not depend on the tokens' order.

        Returns:
            (N,) bool, or None.
        """
        return None

    def select_tokens(self, step: StepTokens) -> tuple[Tensor, Tensor | None]:
        """Return the tokens (N,) whose objective counts, those of the highest entropy, and the result of `select`.

        Raises:
            UserError: `select` returns something else.
        """
        everything = torch.ones_like(step.old, dtype=torch.bool)
        if not len(everything):
            return everything, everything
        with inputs_stay(self.select, step, "step"):
            chosen = self.select(replace(step))
        if chosen is not None:
            require_choice(self.select, chosen, everything)
        if self.top_entropy_quantile < 1:
            count = math.ceil(round(self.top_entropy_quantile * len(everything), 6))  # 0.07 x 100 is 7.000000000000001
            everything = largest(step.entropy, count, step.chance)
        return everything, chosen

    def penalised(self, group: GroupBatch, kl: Tensor) -> GroupBatch:
        """Return the groups with `kl_coef` times the KL divergence subtracted from the rewards.

        Args:
            kl: (P, G) estimate for each completion, a sum over its tokens.
        """
        return replace(group, rewards=group.rewards - self.kl_coef * kl.to(group.rewards.dtype))

    def estimate(self, group: GroupBatch) -> tuple[Tensor, dict[str, float]]:
        """Return advantages of the whole rollout (all ranks), and metrics to log as `train/...`.

        Returns:
            Advantages (P, G), or (B, T) from an estimator of tokens; metrics.

        Raises:
            UserError: the estimator returns no tensor, the wrong shape, or values that are not finite; or advantages of
                tokens, which this loss does not take.
        """
        observed = self._call_on_copy("model", self.observe, group)
        require_metrics(self.observe, observed)
        advantages = require_advantages(
            self.advantage, self._call_on_copy("model.advantage", self.advantage, group), group.rewards,
            group.mask if self.advantage.needs_tokens else None,
        )  # fmt: skip
        if self.sequence_level and advantages.shape != group.rewards.shape:
            raise UserError(
                f"model.advantage: {defined_at(self.advantage)} gives each token an advantage, and "
                f"{type(self).__name__} weighs whole sequences; use a loss on tokens, such as GRPO"
            )
        rewarded = self.completion_means(advantages, group)[group.rewarded]
        return advantages, observed | self.advantage.metrics | {
            "advantage": float(rewarded.mean()),
            "zero_advantage": float((rewarded == 0).double().mean()),
            "advantage_positive_mass": float(rewarded.clamp(min=0).mean()),
            "advantage_negative_mass": float(-rewarded.clamp(max=0).mean()),
        }

    def _call_on_copy(self, option: str, function: Callable[[GroupBatch], Any], group: GroupBatch) -> Any:
        """Call a function on a copy of the groups, whose tensors the run records; warn once if it changes the copy."""
        own = deepcopy(group)
        value = function(own)
        changed = changed_fields(group, own)
        if changed and not self._has_said_change:
            self._has_said_change = True
            _log.warning(
                "%s: %s changes its input (%s); it has a copy, so metrics and completions.jsonl keep the values as "
                "they were", option, defined_at(function), ", ".join(changed),
            )  # fmt: skip
        return value

    @staticmethod
    def completion_means(advantages: Tensor, group: GroupBatch) -> Tensor:
        """Return the advantages if they are (P, G), else the mean (P, G) of each completion's (B, T) in the loss."""
        if advantages.shape == group.rewards.shape:
            return advantages
        assert group.mask is not None
        return masked_mean(advantages, group.mask).view(group.rewards.shape)

    def loss(self, x: LossInputs) -> tuple[Tensor, Stats]:
        """Return the objective plus the KL term minus the entropy bonus, for some rows of one optimizer step.

        Raises:
            UserError: the objective does not return a loss with a gradient and statistics, or an entropy bonus is
                given without a model.
        """
        with inputs_stay(self.objective, x, "x"):
            loss, stats = require_loss(self.objective, self.objective(replace(x)), x)
        if x.ref is not None:
            kl = kl_estimate(x.logp, x.ref, x.mask, self.kl_estimator)
            if self.kl_bias_correction:
                kl = kl * ratio(x.logp, x.old, x.mask)
            loss = loss + self.kl_coef * masked_sum(kl, x.plain_weight, x.mask)
            stats = stats | {"kl": kl.detach().sum()}
        if self.entropy_coef:
            if x.entropy is None:
                raise UserError("model.entropy_coef: the entropy needs a model; use 0")
            loss = loss - self.entropy_coef * masked_sum(x.entropy, x.plain_weight, x.mask)
        return loss, stats
