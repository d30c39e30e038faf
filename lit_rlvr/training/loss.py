"""The mathematics of an algorithm: from rewards to advantages, and from log-probabilities to a loss.

An algorithm overrides

- `objective`, its loss;
- `observe`, if the loss depends on statistics of the whole rollout;
- `select_tokens`, if the loss chooses tokens of a whole step.

Training (`training/module.py`) and the replay of a frozen batch (`commands/check/replay.py`) both use this class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lit_rlvr.advantages import Advantage, GroupBatch, resolve_advantage
from lit_rlvr.common.log import log
from lit_rlvr.common.returned import (
    changed_fields,
    inputs_stay,
    require_advantages,
    require_choice,
    require_loss,
    require_metrics,
)
from lit_rlvr.common.user_code import check_takes, defined_at
from lit_rlvr.distributed.collectives import to_device
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import (
    LossInputs,
    Stats,
    StepTokens,
    largest,
    masked_mean,
    resolve_correction,
)
from lit_rlvr.options import KL, Importance, Loss, Teacher
from lit_rlvr.training.gather import gather_groups, of_this_rank
from lit_rlvr.training.metrics import advantage_metrics
from lit_rlvr.training.teachers import Teachers, TeacherTerm
from lit_rlvr.training.terms import (
    EntropyBonus,
    ExpertBalance,
    InitialLogprobs,
    KLTerm,
    Need,
    ObservationNLL,
    PositiveNLL,
    Term,
    require_term,
    term_costs,
)
from lit_rlvr.types import Rollout


class EstimatedAdvantages(NamedTuple):
    """The advantages of this rank's completions.

    Args:
        per_row: (B, 1), or (B, T) one for each token.
        per_completion: (P, G), the (mean) advantage of each completion.
        metrics: what the run logs of them.
    """

    per_row: Tensor
    per_completion: Tensor
    metrics: dict[str, float]


class LossModule(ABC):
    """The advantage estimator and the loss; see `RLVRModule` for the options.

    Attributes:
        has_ratio: False = the loss is right only on the sampling policy, so with one update per rollout.
        needs_updates: True = with one update per rollout its gradient is GRPO's.
        stops_gradient: True = the objective detaches values on purpose; `lit-rlvr check` holds them fixed.
        sequence_level: True = it weighs whole sequences, so it takes one advantage for each.
        uses_rollout: True = its ratio is to the policy that sampled each token (`x.rollout_logp`), and it bounds
            that ratio itself, so that there is no importance correction.
        fixes_aggregation: True = its formula says what the losses of tokens are divided by, the class's default.
        objective_needs: fields of `x` that the objective needs and that are computed only then: `ref_logp`, `correct`,
            and `entropy` with a gradient.
        advantage: the estimator.
        loss_options: `model.loss`.
        kl: `model.kl`.
        terms: the costs of tokens, ours first.
    """

    has_ratio: ClassVar[bool] = True
    needs_updates: ClassVar[bool] = False
    stops_gradient: ClassVar[bool] = False
    sequence_level: ClassVar[bool] = False
    uses_rollout: ClassVar[bool] = False
    fixes_aggregation: ClassVar[bool] = False
    objective_needs: ClassVar[tuple[Need, ...]] = ()

    def __init__(
        self,
        advantage: Advantage | str,
        loss: Loss,
        kl: KL,
        teacher: Teacher | None,
        terms: Sequence[Term],
        importance: Importance,
        updates_per_rollout: int,
        epochs_per_rollout: int,
    ) -> None:
        super().__init__()
        check_takes(self.objective, "x")
        check_takes(self.observe, "groups")
        check_takes(self.select_tokens, "step")
        self.advantage = resolve_advantage(advantage)
        self.loss_options = loss
        self.kl = kl
        self.teachers = Teachers(teacher)
        self.importance = importance
        self.updates_per_rollout = updates_per_rollout
        self.epochs_per_rollout = epochs_per_rollout
        built_in = (
            KLTerm(kl.coef, kl.estimator, kl.in_reward, kl.bias_correction) if kl.coef else None,
            None if teacher is None else TeacherTerm(teacher),
            ExpertBalance(loss.balance_coef) if loss.balance_coef else None,
            EntropyBonus(loss.entropy_coef) if loss.entropy_coef else None,
            PositiveNLL(loss.positive_nll_coef) if loss.positive_nll_coef else None,
            ObservationNLL(loss.observation_coef) if loss.observation_coef else None,
        )
        for term in terms:
            require_term(term)
        self.terms = [*(term for term in built_in if term is not None), *terms]
        self._warned_of_change = False  # that something changes its input

    def needs(self, need: Need, in_loss: bool = True) -> bool:
        """Return whether the objective or some term needs a field of its input.

        Args:
            need: the field.
            in_loss: ask the objective and the terms in the loss; False = the terms in the rewards and advantages.
        """
        if in_loss and need in self.objective_needs:
            return True
        for term in self.terms:
            if (term.place == "loss") == in_loss and need in term.needs:
                return True
        return False

    @property
    def trains_all_rows(self) -> bool:
        """True if rows with advantage 0 can have a gradient: from a term in the loss, or, in a subclass, from it."""
        for term in self.terms:
            if term.place == "loss":
                return True
        return False

    @property
    def needs_step_tokens(self) -> bool:
        """Whether some tokens are chosen by all tokens of a step: by `select_tokens`, or by their entropy."""
        return type(self).select_tokens is not LossModule.select_tokens or self.loss_options.top_entropy_quantile < 1

    @abstractmethod
    def objective(self, x: LossInputs) -> tuple[Tensor, Stats]:
        """Return the loss of some rows: a sum that includes the global normalisers, without the terms.

        Args:
            x: some rows (B, T) of one optimizer step, which it may not change.

        Returns:
            The loss, a scalar, and counts or sums over the unmasked tokens, which are logged as means over
            the tokens that were run.
        """

    def observe(self, groups: GroupBatch) -> dict[str, float]:
        """Take note of a rollout's rewards before its updates.

        Args:
            groups: those of all ranks, a copy.

        Returns:
            Metrics to log as `train/...`.
        """
        return {}

    def select_tokens(self, step: StepTokens) -> Tensor | None:
        """Choose tokens by a threshold over all tokens of an optimizer step; the objective finds them in `x.selected`.

        Args:
            step: the N tokens of all ranks in the step; the choice must not depend on their order.

        Returns:
            (N,) bool, or None.
        """
        return None

    def choose_tokens(self, step: StepTokens) -> tuple[Tensor, Tensor | None]:
        """Return the tokens (N,) whose objective counts (the highest entropies), and the result of `select_tokens`.

        Raises:
            UserError: `select_tokens` returns something else.
        """
        in_objective = torch.ones_like(step.old_logp, dtype=torch.bool)
        if not len(in_objective):
            return in_objective, in_objective
        with inputs_stay(self.select_tokens, step, "step"):
            chosen = self.select_tokens(replace(step))
        if chosen is not None:
            require_choice(self.select_tokens, chosen, in_objective)
        if self.loss_options.top_entropy_quantile < 1:
            share = self.loss_options.top_entropy_quantile
            count = math.ceil(round(share * len(in_objective), 6))  # 0.07 x 100 is 7.000000000000001
            in_objective = largest(step.entropy, count, step.chance)
        return in_objective, chosen

    def estimate_advantages(self, rollout: Rollout, initial: InitialLogprobs) -> EstimatedAdvantages:
        """Return the advantages of this rank's rows, from all ranks' groups.

        Collective: call it on every rank.
        """
        rewards = to_device(rollout.rewards, initial.mask.device)
        reward_costs, cost_sums = self.reward_costs(initial, rewards)  # (P, G)
        groups = gather_groups(rollout, rewards - reward_costs, self.advantage)  # of all ranks
        estimates, metrics = self.estimate(groups)  # (P, G) or (B, T), of all ranks
        per_row, per_completion = self._of_this_rank(estimates, groups, rollout)
        for term, cost in term_costs(self.terms, "advantages", initial):
            per_row = per_row - term.coef * cost.to(per_row.dtype)
            per_completion = masked_mean(per_row, initial.mask).view(rollout.rewards.shape).cpu()
            cost_sums[term.metric] = cost.double().sum()
        metrics = advantage_metrics(per_completion, cost_sums, initial.mask) | metrics
        if self.teachers.in_loss:
            metrics["no_signal"] = 0.0
        return EstimatedAdvantages(per_row, per_completion, {f"train/{name}": value for name, value in metrics.items()})

    def _of_this_rank(self, estimates: Tensor, groups: GroupBatch, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return this rank's rows (B, 1) or (B, T) of the estimates, and the mean (P, G) of each completion."""
        means = self.completion_means(estimates, groups)  # (P, G), of all ranks
        if estimates.shape == means.shape:
            rows = estimates.reshape(-1, 1)
        else:
            rows = estimates
        per_row = of_this_rank(rows, len(rollout.mask))[:, : rollout.mask.shape[1]]
        per_completion = of_this_rank(means, len(rollout.prompts)).cpu()
        if self.teachers.options is None:
            return per_row, per_completion
        # Completions without a reward learn from the teacher alone.
        is_unrewarded = ~to_device(rollout.has_reward.reshape(-1, 1), per_row.device)
        return per_row.masked_fill(is_unrewarded, 0), per_completion.masked_fill(~rollout.has_reward, 0)

    def live_rows(self, rollout: Rollout, advantages: Tensor) -> list[int]:
        """Return the rows of a rollout that can have a gradient, by their advantages (B, 1) or (B, T)."""
        live = rollout.mask.any(1)  # (B,) rows with a token in the loss
        if not self.trains_all_rows:
            live &= (advantages != 0).any(1).cpu()
        rows: list[int] = live.nonzero().flatten().tolist()
        return rows

    def split_groups(self, rollout: Rollout) -> list[list[int]]:
        """Split the groups to train on into `updates_per_rollout` parts, by position in the (shuffled) prompt stream.

        A part is the same set of groups on any number of ranks. Each rank has an equal share of it, unless dynamic
        sampling dropped some of its groups.
        """
        count = self.updates_per_rollout
        if rollout.kept is None:
            numbers = {}
            for p in range(len(rollout.prompts)):
                numbers[p] = p
        else:
            numbers = rollout.kept
        parts: list[list[int]] = [[] for _ in range(count)]
        for p, number in numbers.items():
            parts[number % count].append(p)
        return parts

    def resolve_importance(self, exact: bool) -> Importance:
        """Return the correction for completions of an engine.

        Args:
            exact: its log-probabilities equal the trainer's.
        """
        mode = "none" if self.uses_rollout else resolve_correction(self.importance.correction, exact)
        return replace(self.importance, correction=mode)

    def reward_costs(self, initial: InitialLogprobs, rewards: Tensor) -> tuple[Tensor, Stats]:
        """Return what the terms take from some rewards (P, G), in their shape and precision; and sums over tokens, by
        metric, which are logged as means."""
        total = torch.zeros_like(rewards)
        stats = Stats()
        for term, cost in term_costs(self.terms, "rewards", initial):
            total = total + term.coef * cost.sum(1).view(rewards.shape).to(total)
            stats[term.metric] = cost.double().sum()
        return total, stats

    def estimate(self, groups: GroupBatch) -> tuple[Tensor, dict[str, float]]:
        """Return advantages of the whole rollout (all ranks), and metrics to log as `train/...`.

        Returns:
            Advantages (P, G), or (B, T) from an estimator of tokens; metrics.

        Raises:
            UserError: the estimator returns no tensor, the wrong shape, or values that are not finite; or advantages of
                tokens, which this loss does not take.
        """
        observed = self._call_on_copy("model", self.observe, groups)
        require_metrics(f"model: {defined_at(self.observe)}", observed)
        advantages = require_advantages(
            self.advantage,
            self._call_on_copy("model.advantage", self.advantage, groups),
            groups.rewards,
            groups.mask if self.advantage.needs_tokens else None,
        )
        if self.sequence_level and advantages.shape != groups.rewards.shape:
            raise UserError(
                f"model.advantage: {defined_at(self.advantage)} gives each token an advantage, and "
                f"{type(self).__name__} weighs whole sequences; use a loss on tokens, such as GRPO or GSPOToken"
            )
        require_metrics(f"model.advantage: {type(self.advantage).__name__}.metrics", self.advantage.metrics)
        rewarded = self.completion_means(advantages, groups)[groups.has_reward]
        return advantages, observed | self.advantage.metrics | {
            "advantage": float(rewarded.mean()),
            "zero_advantage": float((rewarded == 0).double().mean()),
            "advantage_positive_mass": float(rewarded.clamp(min=0).mean()),
            "advantage_negative_mass": float(-rewarded.clamp(max=0).mean()),
        }

    def _call_on_copy(self, option: str, function: Callable[[GroupBatch], Any], groups: GroupBatch) -> Any:
        """Call a function on a copy of the groups, whose tensors the run records; warn once if it changes the copy."""
        copied = deepcopy(groups)
        value = function(copied)
        changed = changed_fields(groups, copied)
        if changed and not self._warned_of_change:
            self._warned_of_change = True
            log.warning(
                "%s: %s changes its input (%s); it has a copy, so metrics and completions.jsonl keep the values as "
                "they were",
                option,
                defined_at(function),
                ", ".join(changed),
            )
        return value

    @staticmethod
    def completion_means(advantages: Tensor, groups: GroupBatch) -> Tensor:
        """Return the advantages if they are (P, G), else the mean (P, G) of each completion's (B, T) in the loss."""
        if advantages.shape == groups.rewards.shape:
            return advantages
        assert groups.mask is not None
        return masked_mean(advantages, groups.mask).view(groups.rewards.shape)

    def loss(self, x: LossInputs) -> tuple[Tensor, Stats]:
        """Return the objective plus the terms in the loss, for some rows of one optimizer step.

        Raises:
            UserError: the objective does not return a loss with a gradient and statistics, or a term cannot be
                computed.
        """
        with inputs_stay(self.objective, x, "x"):
            loss, stats = require_loss(self.objective, self.objective(replace(x)), x)
        for term, cost in term_costs(self.terms, "loss", x):
            loss = loss + term.coef * (cost * term.weight(x)).sum()
            if term.metric in stats:
                raise UserError(
                    f"{term.option}: its metric {term.metric!r} is a statistic of {defined_at(self.objective)}, too; "
                    "rename one of them"
                )
            if term.metric:
                stats = stats | {term.metric: cost.detach().sum()}
        return loss, stats
