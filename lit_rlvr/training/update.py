"""One optimizer step is `Updater.step`: forward, loss, backward; reduce and clip; step or skip."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.seeds import derive_seed, run_seed
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import average_gradients, index, rank, to_device, world_size
from lit_rlvr.distributed.sharding import full_tensor, has_shards, reduce_over_copies
from lit_rlvr.objectives import Stats
from lit_rlvr.options import Importance, Optim
from lit_rlvr.policy.adapters import adapter_dropout
from lit_rlvr.policy.logprobs import ScoredTokens
from lit_rlvr.policy.policy import Policy
from lit_rlvr.policy.precision import flip_low_bits, more_bits_than_autocast
from lit_rlvr.training.failures import (
    SkippedSteps,
    TokenBudget,
    find_not_finite,
    save_step,
    smaller_microbatches_when_out_of_memory,
)
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.optimizer import AdaptiveLR, all_parameters, step_cosine
from lit_rlvr.training.step import (
    PreparedRollout,
    StepPlan,
    logprobs_of,
    loss_inputs,
    mean_kl,
    measured_rows,
    plan_step,
    step_metrics,
)
from lit_rlvr.training.teachers import Teachers
from lit_rlvr.training.terms import TokenScores
from lit_rlvr.training.trace import Trace
from lit_rlvr.types import Rollout


class Updater:
    """Takes the optimizer steps on a rollout.

    Args:
        policy: the trained policy. reference: if a term needs it. teachers: may be none.
        algorithm: its loss, its coefficients, and how it averages over tokens.
        optimizer: Lightning's wrapper. schedule: of the learning rate, stepped with the optimizer.
        backward: computes the gradients of a loss on this rank; DDP does not average them.
        optim: the settings of the optimizer.
        budget: the most input tokens in a micro-batch. skipped: counts skipped steps.
        run: the run's folder, for what a failed step leaves.
        adaptive_lr: changes the learning rate after each step; None = the schedule alone does.
    """

    def __init__(
        self, policy: Policy, reference: Policy, teachers: Teachers, algorithm: LossModule, optimizer: Any,
        schedule: Any, backward: Callable[[Tensor], None], optim: Optim, budget: TokenBudget, skipped: SkippedSteps,
        run: Path, adaptive_lr: AdaptiveLR | None,
    ) -> None:  # fmt: skip
        self.policy, self.reference, self.teachers, self.algorithm = policy, reference, teachers, algorithm
        self.optimizer, self.schedule, self.backward = optimizer, schedule, backward
        self.sharded, self.optim, self.adaptive_lr = has_shards(policy.parameters()), optim, adaptive_lr
        self.budget, self.skipped, self.run = budget, skipped, run
        self.measured_budget = copy(budget)

    def score_tokens(self, rollout: Rollout) -> TokenScores:
        """Return what the advantages and the choice of tokens need, if they need anything. Collective: call it on every
        rank."""
        scores = TokenScores(to_device(rollout.mask, self.policy.device))
        rows = [int(i) for i in rollout.mask.any(1).nonzero().flatten()]
        algorithm = self.algorithm
        if algorithm.needs_step_tokens or any(term.place != "loss" for term in algorithm.terms):
            needs_entropy = algorithm.needs_step_tokens or algorithm.needs("entropy", in_loss=False)
            scores.logp, entropy = self.logprobs(rollout, self.policy, rows, needs_entropy)
            scores.entropy = entropy if needs_entropy else None
        if algorithm.needs("ref_logp", in_loss=False):
            scores.ref_logp, _ = self.logprobs(rollout, self.reference, rows)
        if algorithm.needs("teacher_logp", in_loss=False) and self.teachers.options is not None:
            scores.teacher_logp = self.teachers.logprobs(rollout, rows, lambda *given: self.logprobs(*given)[0])
        return scores

    def prepare(
        self, rollout: Rollout, scores: TokenScores, advantages: Tensor, live: list[int],
        minibatches: list[list[int]], correction: Importance, age: Tensor, trace: Trace | None,
    ) -> PreparedRollout:  # fmt: skip
        """Return a rollout with the log-probabilities that stay fixed during its updates. Collective: call it on every
        rank.

        The first minibatch runs on the rollout's weights, so its old log-probabilities are its current ones.

        Args:
            advantages: (B, 1) or (B, T). live: rows that can have a gradient.
            minibatches: the groups of each optimizer step.
            age: (B, T), as in `PreparedRollout`.
        """
        prepared = PreparedRollout(
            rollout, advantages, live, correction, age, trace, old_logp=scores.logp, entropy=scores.entropy
        )
        if trace is not None and rollout.advantages is not None:
            trace.choose(rollout.advantages, {p for prompts in minibatches for p in prompts})
        if prepared.old_logp is None and len(minibatches) > 1 and correction.prox_logp_method == "recompute":
            first = set(minibatches[0])
            later = [i for i in live if i // rollout.group_size not in first]
            prepared.old_logp, _ = self.logprobs(rollout, self.policy, later)
        if self.algorithm.needs("ref_logp"):
            prepared.ref_logp, _ = self.logprobs(rollout, self.reference, live)
        return prepared

    @smaller_microbatches_when_out_of_memory
    def logprobs(
        self, rollout: Rollout, policy: Policy, rows: list[int], entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return (B, T) log-probabilities and, if asked for, entropies of some rows, without gradients."""
        return logprobs_of(policy, rollout, rows, self.budget.tokens, self.sharded, entropy)

    def step(self, prepared: PreparedRollout, prompts: list[int], number: int) -> dict[str, float]:
        """Take optimizer step `number` on the groups of some prompts; return its metrics. Collective: call it on every
        rank."""
        with adapter_dropout(self.policy.model, derive_seed("dropout", run_seed(), number, rank())):
            plan, sums = self.accumulate(prepared, prompts)
        norm = self.reduce_and_clip()
        wrong = find_not_finite(sums.get("loss"), norm)
        if wrong is not None:
            self.skipped.add(number, wrong, save_step(self.run, number, wrong, plan, self.run_alone))
        learning_rate = self.optimizer.param_groups[0]["lr"]
        metrics = self.take_step(plan, is_skipped=wrong is not None)
        if wrong is None:
            metrics = step_metrics(sums) | {"train/grad_norm": float(norm)} | metrics
        self.schedule.step()
        prepared.updates += 1
        progress.advance()
        return metrics | {"train/lr": learning_rate, "train/skipped_steps": float(self.skipped.total)}

    def take_step(self, plan: StepPlan, is_skipped: bool) -> dict[str, float]:
        """Step the optimizer; return what the adaptive learning rate measures of it. Collective.

        A skipped step, or one on a rollout that no reward judged, has no gradients: weights and moments stay, because
        AdamW ignores parameters without a gradient.
        """
        if not is_skipped and plan.prepared.rollout.is_unjudged:
            self.skipped.total += 1
        elif not is_skipped:
            self.skipped.in_a_row = 0
        if is_skipped or plan.prepared.rollout.is_unjudged:
            self.optimizer.zero_grad()
        adaptive = None if is_skipped else self.adaptive_lr
        if adaptive is not None:
            cosine = step_cosine(self.optimizer, self.sharded)
            measured = measured_rows(plan, one_in=32 if self.measures_in_float32 else 8)
            before = self.measured_logprobs(plan, measured)
        self.optimizer.step()
        self.optimizer.zero_grad()  # frees their memory for the next rollout
        if adaptive is None:
            return {}
        after = self.measured_logprobs(plan, measured)
        kl = mean_kl(before, after)
        if self.rounds_measurement:
            flip_low_bits(all_parameters(self.optimizer))
            rounding = mean_kl(after, self.measured_logprobs(plan, measured))
            flip_low_bits(all_parameters(self.optimizer))
            kl = kl if isnan(kl) else max(kl - rounding, 0.0)
        adaptive.adapt(kl, cosine, self.optimizer, self.schedule)
        return {k: v for k, v in {"train/kl_step": kl, "train/step_cosine": cosine}.items() if not isnan(v)}

    @property
    def measures_in_float32(self) -> bool:
        """True if training computes in 16 bits, and this rank has all weights in float32."""
        device = self.policy.device.type
        whole = not self.sharded and all(p.dtype == torch.float32 for p in self.policy.parameters())
        return whole and torch.is_autocast_enabled(device)

    @property
    def rounds_measurement(self) -> bool:
        """Whether the rounding of activations adds to the divergence of a step, from which it is then subtracted."""
        return torch.is_autocast_enabled(self.policy.device.type) and not self.measures_in_float32

    def measured_logprobs(self, plan: StepPlan, rows: list[int]) -> Tensor:
        """Return the log-probabilities (N,) of some rows' tokens in the loss, always by the same operations.

        In bfloat16 the smallest step changes the rounding of all activations, which alone is a divergence of 1e-3 to
        5e-3 nats per token. Running out of memory here leaves the micro-batches of training as they are. Collective:
        call it on every rank.
        """
        device, training = self.policy.device, self.budget
        self.budget = self.measured_budget
        try:
            with more_bits_than_autocast(device) if self.measures_in_float32 else nullcontext():
                logp, _ = self.logprobs(plan.prepared.rollout, self.policy, rows)
        finally:
            self.budget = training
        at = index(rows, logp.device)
        return logp[at][plan.mask[at]]

    @smaller_microbatches_when_out_of_memory
    def accumulate(self, prepared: PreparedRollout, prompts: list[int]) -> tuple[StepPlan, Stats]:
        """Accumulate this rank's gradients over the step's micro-batches; return its plan and sums over the tokens that
        were run."""
        plan = plan_step(
            prepared, prompts, self.policy.device, self.algorithm, self.budget.tokens,
            self.policy.shared_prefix, self.sharded,
        )  # fmt: skip
        self.optimizer.zero_grad()
        sums: Stats = {}
        for k, rows in enumerate(plan.microbatches):
            scores = self.forward(plan, k)
            if prepared.on_policy:
                prepared.record_old(rows, scores.logp)
            inputs, stats = loss_inputs(plan, k, scores)
            if prepared.on_policy and self.policy.flips is not None:
                stats["expert_flips"] = (self.policy.flips * inputs.mask).sum()
            if prepared.trace is not None and k < plan.num_microbatches:
                prepared.trace.watch(rows, prepared.rollout.group_size, inputs)
            loss, more = self.algorithm.loss(inputs)
            # Distributed strategies average over ranks; we sum.
            self.local_backward(loss * world_size(), last=k == len(plan.microbatches) - 1)
            for name, value in (stats | more | {"loss": loss.detach()}).items():
                sums[name] = sums.get(name, 0) + value.double() * float(k < plan.num_microbatches)
        return plan, sums

    def forward(self, plan: StepPlan, k: int) -> ScoredTokens:
        """Run the policy on micro-batch k, and before it a teacher whose divergence is in the loss; return what the
        loss needs, (rows, T) each."""
        rollout, rows = plan.prepared.rollout, plan.microbatches[k]
        teacher = self.teachers.teach(rollout, rows) if self.teachers.in_loss else None
        return self.policy.score(rollout, rows, True, self.algorithm.needs("entropy"), teacher)

    def local_backward(self, loss: Tensor, last: bool = True) -> None:
        """Compute gradients, which stay local under DDP: `reduce_and_clip` averages them once per step.

        Sharded gradients are reduced at once over the shards, because otherwise every rank would hold all of them, and
        over copies of the model after the last micro-batch.
        """
        if self.sharded:
            reduce_over_copies(self.policy, now=last)
        self.backward(loss)

    def reduce_and_clip(self) -> Tensor:
        """Average the gradients over ranks and scale them down to `max_grad_norm`; return their norm before that."""
        parameters = all_parameters(self.optimizer)
        for parameter in parameters:  # groups that are not run have gradient zero, which AdamW still sees
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if world_size() > 1 and not self.sharded:
            average_gradients(parameters)
        limit = self.optim.max_grad_norm if self.optim.max_grad_norm > 0 else float("inf")
        return full_tensor(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def run_alone(self, plan: StepPlan, k: int) -> tuple[Tensor, list[Tensor | None]]:
        """Return the loss and gradients of micro-batch k by itself."""
        self.optimizer.zero_grad()
        loss, _ = self.algorithm.loss(loss_inputs(plan, k, self.forward(plan, k))[0])
        self.local_backward(loss)
        return loss.detach(), [parameter.grad for parameter in all_parameters(self.optimizer)]
