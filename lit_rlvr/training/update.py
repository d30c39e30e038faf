"""One optimizer step is `Updater.step`: forward, loss, backward; reduce and clip; step or skip."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.seeds import derive_seed, run_seed
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import average_gradients, rank, to_device, world_size
from lit_rlvr.distributed.sharding import full_tensor, has_shards, reduce_over_copies
from lit_rlvr.objectives import Stats
from lit_rlvr.options import Optim
from lit_rlvr.policy.adapters import adapter_dropout
from lit_rlvr.policy.logprobs import PolicyOutput
from lit_rlvr.policy.policy import Policy
from lit_rlvr.training.adaptive_lr import AdaptiveLR, AdaptiveStep
from lit_rlvr.training.failures import (
    MicrobatchGradients,
    SkippedSteps,
    TokenBudget,
    find_not_finite,
    save_step,
    smaller_microbatches_when_out_of_memory,
)
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.metrics import step_metrics
from lit_rlvr.training.noise_scale import MicrobatchNorms, NoiseScale, step_noise
from lit_rlvr.training.optimizer import all_parameters
from lit_rlvr.training.step import (
    PreparedRollout,
    StepPlan,
    logprobs_in_microbatches,
    loss_inputs,
    plan_step,
)
from lit_rlvr.training.teachers import Teachers
from lit_rlvr.training.terms import InitialLogprobs, broken_terms
from lit_rlvr.types import Rollout


@dataclass(eq=False)
class Updater:
    """Takes the optimizer steps on a rollout.

    Args:
        policy: the trained policy.
        reference: the reference policy; None if nothing needs it.
        teachers: the teachers; there may be none.
        algorithm: its loss and its terms.
        optimizer: Lightning's wrapper of the optimizer.
        schedule: the schedule of the learning rate, stepped with the optimizer.
        backward_on_rank: computes the gradients of a loss on this rank; DDP does not average them.
        optim: the options of the optimizer.
        budget: the most input tokens in a micro-batch.
        skipped: counts skipped steps.
        run: the run's folder, for what a failed step leaves.
        adaptive_lr: changes the learning rate after each step; None = the schedule alone does.
        noise_scale: averages the signal and the noise of the steps' gradients.

    Attributes:
        norms: measures the gradients of micro-batches.
        sharded: whether each rank has a part of each weight.
        adaptive_step: takes the steps, if there is an `adaptive_lr`.
    """

    policy: Policy
    reference: Policy | None
    teachers: Teachers
    algorithm: LossModule
    optimizer: Any
    schedule: Any
    backward_on_rank: Callable[[Tensor], None]
    optim: Optim
    budget: TokenBudget
    skipped: SkippedSteps
    run: Path
    adaptive_lr: AdaptiveLR | None
    noise_scale: NoiseScale

    def __post_init__(self) -> None:
        self.sharded = has_shards(self.policy.parameters())
        self.norms = MicrobatchNorms(self.policy)
        if self.adaptive_lr is None:
            self.adaptive_step = None
        else:
            self.adaptive_step = AdaptiveStep(
                self.adaptive_lr, self.policy, self.optimizer, self.schedule, copy(self.budget), self.run
            )

    def initial_logprobs(self, rollout: Rollout) -> InitialLogprobs:
        """Score a rollout's tokens under the policy, the reference and the teachers before its first update, as far as
        rewards, advantages or the choice of tokens need it.

        Collective: call it on every rank.
        """
        initial = InitialLogprobs(to_device(rollout.mask, self.policy.device))
        rows = [int(i) for i in rollout.mask.any(1).nonzero().flatten()]
        algorithm = self.algorithm
        if algorithm.needs_step_tokens or any(term.place != "loss" for term in algorithm.terms):
            needs_entropy = algorithm.needs_step_tokens or algorithm.needs("entropy", in_loss=False)
            initial.logp, entropy = self.logprobs(rollout, self.policy, rows, needs_entropy)
            initial.entropy = entropy if needs_entropy else None
        if algorithm.needs("ref_logp", in_loss=False):
            initial.ref_logp, _ = self.logprobs(rollout, self.reference, rows)
        if algorithm.needs("teacher_logp", in_loss=False) and self.teachers.options is not None:
            initial.teacher_logp = self.teachers.logprobs(rollout, rows, lambda *given: self.logprobs(*given)[0])
        return initial

    def add_fixed_logprobs(self, prepared: PreparedRollout, minibatches: list[list[int]]) -> None:
        """Add the log-probabilities that stay fixed during a rollout's updates, and choose what its trace records.

        The first minibatch runs on the weights of the iteration's beginning, so its old log-probabilities are its
        current ones.
        Collective: call it on every rank.

        Args:
            prepared: the rollout.
            minibatches: the groups of each optimizer step.
        """
        rollout = prepared.rollout
        live = prepared.live
        if prepared.trace is not None and rollout.advantages is not None:
            prepared.trace.choose(rollout.advantages, {p for groups in minibatches for p in groups})
        recomputes = prepared.importance.prox_logp_method == "recompute"
        if prepared.old_logp is None and len(minibatches) > 1 and recomputes:
            first = set(minibatches[0])
            later = [i for i in live if i // rollout.group_size not in first]
            prepared.old_logp, _ = self.logprobs(rollout, self.policy, later)
        if self.algorithm.needs("ref_logp"):
            prepared.ref_logp, _ = self.logprobs(rollout, self.reference, live)

    @smaller_microbatches_when_out_of_memory
    def logprobs(
        self, rollout: Rollout, policy: Policy | None, rows: list[int], entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return (B, T) log-probabilities and, if asked for, entropies of some rows, without gradients.

        Collective: call it on every rank.
        """
        assert policy is not None, "a reference is loaded where it is needed"
        return logprobs_in_microbatches(policy, rollout, rows, self.budget.tokens, self.sharded, entropy)

    def step(self, prepared: PreparedRollout, groups: list[int], number: int) -> dict[str, float]:
        """Take an optimizer step on some groups of the rollout; return its metrics.

        Collective: call it on every rank.

        Args:
            prepared: the rollout.
            groups: positions of this rank's groups in the step.
            number: of the step in the run, from 1.
        """
        with adapter_dropout(self.policy.model, derive_seed("dropout", run_seed(), number, rank())):
            plan, sums = self.accumulate(prepared, groups)
        norm = self.reduce_and_clip()
        metrics = {"train/lr": self.optimizer.param_groups[0]["lr"]}
        not_finite = find_not_finite(sums.get("loss"), norm)
        is_unrewarded = prepared.rollout.is_unrewarded
        if not_finite is None:
            self.skipped.add_finite(is_unrewarded)
            grad_norm = float(norm)
            noise = step_noise(plan, len(groups), self.norms.end(), grad_norm)
            metrics |= step_metrics(sums) | {"train/grad_norm": grad_norm} | self.noise_scale.add(noise)
        else:
            saved = save_step(self.run, number, not_finite, plan, self.microbatch_gradients)
            self.skipped.add(number, not_finite, saved)
        metrics |= self.step_or_skip(plan, is_skipped=is_unrewarded or not_finite is not None)
        self.schedule.step()
        prepared.steps_taken += 1
        progress.advance()
        return metrics | {"train/skipped_steps": float(self.skipped.total)}

    def step_or_skip(self, plan: StepPlan, is_skipped: bool) -> dict[str, float]:
        """Step the optimizer; return what the adaptive learning rate measures of the step.

        A skipped step has no gradients: weights and moments stay, because AdamW ignores parameters without a gradient.
        Collective: call it on every rank.
        """
        if self.adaptive_step is not None and not is_skipped:
            return self.adaptive_step.take(plan)  # it steps the optimizer, between two measurements
        if is_skipped:
            self.optimizer.zero_grad()
        self.optimizer.step()  # also after a skip: Lightning counts the run's steps by it
        self.optimizer.zero_grad()  # frees the gradients' memory for the next rollout
        return {}

    @smaller_microbatches_when_out_of_memory
    def accumulate(self, prepared: PreparedRollout, groups: list[int]) -> tuple[StepPlan, Stats]:
        """Accumulate this rank's gradients over the step's micro-batches; return the step's plan, and sums over the
        tokens that were run.

        Collective: call it on every rank.
        """
        plan = plan_step(
            prepared,
            groups,
            self.algorithm,
            device=self.policy.device,
            tokens_per_microbatch=self.budget.tokens,
            shared_prefix=self.policy.shared_prefix,
            in_lockstep=self.sharded,
        )
        self.optimizer.zero_grad()
        self.norms.begin(plan)
        sums: Stats = {}
        for k, rows in enumerate(plan.microbatches):
            output = self.forward_microbatch(plan, k)
            prepared.record_old_logprobs(rows, output.logp)
            inputs, stats = loss_inputs(plan, k, output)
            if prepared.is_first_step and self.policy.flips is not None:
                stats["expert_flips"] = (self.policy.flips * inputs.mask).sum()
            if prepared.trace is not None and k < plan.num_counted:
                prepared.trace.watch(rows, prepared.rollout.group_size, inputs)
            loss, loss_stats = self.algorithm.loss(inputs)
            # Distributed strategies average over ranks; we sum.
            self.backward_microbatch(loss * world_size(), last=k == len(plan.microbatches) - 1)
            self.norms.add_microbatch(is_counted=k < plan.num_counted)
            for name, value in (stats | loss_stats | {"loss": loss.detach()}).items():
                sums[name] = sums.get(name, 0) + value.double() * float(k < plan.num_counted)
        return plan, sums

    def forward_microbatch(self, plan: StepPlan, k: int) -> PolicyOutput:
        """Run the policy on micro-batch k, and before it a teacher whose divergence is in the loss; return what the
        loss needs, (rows, T) each."""
        rollout = plan.prepared.rollout
        rows = plan.microbatches[k]
        if self.teachers.in_loss:
            teacher = self.teachers.teach(rollout, rows)
        else:
            teacher = None
        return self.policy.forward_rows(
            rollout, rows, entropy=True, entropy_gradient=self.algorithm.needs("entropy"), teacher=teacher
        )

    def backward_microbatch(self, loss: Tensor, last: bool = True) -> None:
        """Compute gradients, which stay local under DDP: `reduce_and_clip` averages them once per step.

        Sharded gradients are reduced at once over the shards, because otherwise every rank would hold all of them, and
        over copies of the model after the last micro-batch.
        """
        if self.sharded:
            reduce_over_copies(self.policy, now=last)
        self.backward_on_rank(loss)

    def reduce_and_clip(self) -> Tensor:
        """Average the gradients over ranks and scale them down to `max_grad_norm`; return their norm before that."""
        parameters = all_parameters(self.optimizer)
        for parameter in parameters:  # groups that are not run have gradient zero, which AdamW still sees
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if world_size() > 1 and not self.sharded:
            average_gradients(parameters)
        if self.optim.max_grad_norm > 0:
            limit = self.optim.max_grad_norm
        else:
            limit = float("inf")
        return full_tensor(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def microbatch_gradients(self, plan: StepPlan, k: int) -> MicrobatchGradients:
        """Return the loss and gradients of micro-batch k by itself, and its terms that are not finite."""
        self.optimizer.zero_grad()
        inputs, _ = loss_inputs(plan, k, self.forward_microbatch(plan, k))
        terms = broken_terms(self.algorithm.terms, inputs)
        loss, _ = self.algorithm.loss(inputs)
        self.backward_microbatch(loss)
        gradients = [parameter.grad for parameter in all_parameters(self.optimizer)]
        return MicrobatchGradients(loss.detach(), gradients, terms)
