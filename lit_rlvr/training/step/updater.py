"""The operations of an optimizer step, on the policy and its optimizer. `training/loop.py` calls them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.common.seeds import derive_seed, run_seed
from lit_rlvr.common.terminal import progress
from lit_rlvr.distributed.collectives import average_gradients, rank, to_device, world_size
from lit_rlvr.distributed.sharding import full_tensor, has_shards, reduce_over_copies
from lit_rlvr.objectives import LossInputs, Stats
from lit_rlvr.options import Optim
from lit_rlvr.policy.adapters import adapter_dropout
from lit_rlvr.policy.logprobs import PolicyOutput
from lit_rlvr.policy.policy import Policy
from lit_rlvr.training.adaptive_lr import AdaptiveLR, AdaptiveStep
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.metrics import staleness_metrics, step_metrics
from lit_rlvr.training.noise_scale import MicrobatchNorms, NoiseScale, step_noise
from lit_rlvr.training.optimizer import all_parameters
from lit_rlvr.training.step.failures import MicrobatchGradients, SkippedSteps, save_step
from lit_rlvr.training.step.loss_inputs import loss_inputs
from lit_rlvr.training.step.memory import TokenBudget, retry_smaller
from lit_rlvr.training.step.microbatches import StepLimits, logprobs_in_microbatches
from lit_rlvr.training.step.plan import StepPlan
from lit_rlvr.training.step.prepared import PreparedRollout
from lit_rlvr.training.teachers import Teachers
from lit_rlvr.training.terms import InitialLogprobs, broken_terms
from lit_rlvr.training.trace import Trace
from lit_rlvr.types import Rollout


@dataclass(eq=False)
class Updater:
    """The operations of an optimizer step; `train` and `accumulate` in training/loop.py call them in order.

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
        run_folder: the run's folder, for what a failed step leaves.
        adaptive_lr: changes the learning rate after each step; None = the schedule alone does.
        noise_scale: averages the signal and the noise of the steps' gradients.

    Attributes:
        norms: measures the gradients of micro-batches.
        sharded: whether each rank has a part of each weight.
        adaptive_step: takes the steps, if there is an `adaptive_lr`.
        has_logged_staleness: whether a rollout so far had tokens of older weights.
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
    run_folder: Path
    adaptive_lr: AdaptiveLR | None
    noise_scale: NoiseScale

    def __post_init__(self) -> None:
        self.sharded = has_shards(self.policy.parameters())
        self.norms = MicrobatchNorms(self.policy)
        self.has_logged_staleness = False
        if self.adaptive_lr is None:
            self.adaptive_step = None
        else:
            self.adaptive_step = AdaptiveStep(
                self.adaptive_lr, self.policy, self.optimizer, self.schedule, copy(self.budget)
            )

    # ---- before the first step of a rollout ---------------------------------------------------------------

    def initial_logprobs(self, rollout: Rollout) -> InitialLogprobs:
        """Score a rollout's tokens under the policy, the reference and the teachers before its first update, as far as
        rewards, advantages or the choice of tokens need it.

        Collective: call it on every rank.
        """
        initial = InitialLogprobs(to_device(rollout.mask, self.policy.device))
        rows: list[int] = rollout.mask.any(1).nonzero().flatten().tolist()
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

    def prepare(
        self,
        rollout: Rollout,
        advantages: Tensor,
        initial: InitialLogprobs,
        minibatches: list[list[int]],
        step: int,
        trace: Trace | None,
    ) -> PreparedRollout:
        """Return a rollout with what stays fixed during its updates, and choose what its trace records.

        The first minibatch runs on the weights of the iteration's beginning, so its old log-probabilities are its
        current ones.
        Collective: call it on every rank.

        Args:
            rollout: the rollout.
            advantages: (B, 1) or (B, T).
            initial: what `initial_logprobs` returned.
            minibatches: the groups of each optimizer step.
            step: the number of the first optimizer step in the run, from 1.
            trace: records what the updates do with its tokens; None = nothing does.
        """
        algorithm = self.algorithm
        assert rollout.versions is not None, "the source sets them in training"
        progress.begin("training", total=len(minibatches))
        if trace is not None and rollout.advantages is not None:
            trace.choose(rollout.advantages, set(chain.from_iterable(minibatches)))
        live = algorithm.live_rows(rollout, advantages)
        importance = algorithm.resolve_importance(rollout.exact)
        old_logp = initial.logp
        if old_logp is None and len(minibatches) > 1 and importance.prox_logp_method == "recompute":
            old_logp, _ = self.logprobs(rollout, self.policy, without_groups(live, minibatches[0], rollout.group_size))
        ref_logp = None
        if algorithm.needs("ref_logp"):
            ref_logp, _ = self.logprobs(rollout, self.reference, live)
        age = step - 1 - rollout.versions
        staleness = staleness_metrics(rollout, age, live, minibatches, log_zero=self.has_logged_staleness)
        self.has_logged_staleness = self.has_logged_staleness or bool(staleness)
        return PreparedRollout(
            rollout,
            advantages,
            live=live,
            importance=importance,
            age=age,
            trace=trace,
            staleness=staleness,
            old_logp=old_logp,
            ref_logp=ref_logp,
            entropy=initial.entropy,
        )

    def logprobs(
        self, rollout: Rollout, policy: Policy | None, rows: list[int], entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return (B, T) log-probabilities and, if asked for, entropies of some rows, without gradients.

        Collective: call it on every rank.
        """
        assert policy is not None, "a reference is loaded where it is needed"

        def score() -> tuple[Tensor, Tensor]:
            return logprobs_in_microbatches(policy, rollout, rows, self.budget.tokens, self.sharded, entropy)

        return retry_smaller(self.budget, rollout, score)

    # ---- the gradient of a step ---------------------------------------------------------------------------

    @property
    def limits(self) -> StepLimits:
        """The limits by which a step is cut into micro-batches now."""
        return StepLimits(
            device=self.policy.device,
            tokens_per_microbatch=self.budget.tokens,
            shared_prefix=self.policy.shared_prefix,
            in_lockstep=self.sharded,
        )

    def begin_step(self, plan: StepPlan) -> None:
        """Forget the gradients of an earlier step, or of an attempt that ran out of memory."""
        self.optimizer.zero_grad()
        self.norms.begin(plan)

    def dropout(self, step: int) -> AbstractContextManager[None]:
        """Return a context in which adapters drop the same inputs whenever a step of this number is taken."""
        return adapter_dropout(self.policy.model, derive_seed("dropout", run_seed(), step, rank()))

    def forward(self, plan: StepPlan, k: int) -> PolicyOutput:
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

    def record(self, plan: StepPlan, k: int, inputs: LossInputs) -> None:
        """Let the trace record micro-batch k, if there is one."""
        prepared = plan.prepared
        if prepared.trace is not None and plan.is_counted(k):
            prepared.trace.watch(plan.microbatches[k], prepared.rollout.group_size, inputs)

    def backward(self, plan: StepPlan, k: int, loss: Tensor) -> None:
        """Add the gradients of micro-batch k, which stay local under DDP: `reduce_and_clip` averages them once per
        step.

        Sharded gradients are reduced at once over the shards, because otherwise every rank would hold all of them, and
        over copies of the model after the last micro-batch.
        """
        if self.sharded:
            reduce_over_copies(self.policy, now=k == len(plan.microbatches) - 1)
        self.backward_on_rank(loss * world_size())  # distributed strategies average over ranks, and losses are sums
        self.norms.add_microbatch(plan.is_counted(k))

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

    # ---- the step -----------------------------------------------------------------------------------------

    def report_not_finite(self, plan: StepPlan, not_finite: list[str], step: int) -> None:
        """Save the groups of a step that is not finite, and say so.

        Collective: call it on every rank.

        Args:
            plan: of the step.
            not_finite: as `find_not_finite` returns it.
            step: its number in the run, from 1.

        Raises:
            UserError: too many steps in a row were not finite.
        """
        with self.dropout(step):
            saved = save_step(self.run_folder, step, not_finite, plan, self.microbatch_gradients)
        self.skipped.report(step, not_finite, saved)

    def measure(self, plan: StepPlan, sums: Stats, norm: Tensor, is_finite: bool) -> dict[str, float]:
        """Return the metrics of a step before it is taken; its noise joins the averages of the noise scale.

        Collective: call it on every rank.
        """
        metrics = {"train/lr": self.optimizer.param_groups[0]["lr"], "train/skipped_steps": float(self.skipped.total)}
        if plan.prepared.is_first_step:
            metrics |= plan.prepared.staleness
        if not is_finite:
            return metrics
        grad_norm = float(norm)
        noise = step_noise(plan, len(plan.groups), self.norms.end(), grad_norm)
        return metrics | step_metrics(sums) | {"train/grad_norm": grad_norm} | self.noise_scale.add(noise)

    def take_step(self, plan: StepPlan) -> dict[str, float]:
        """Step the optimizer, and free the gradients' memory; return what the adaptive learning rate measures of it.

        Collective: call it on every rank.
        """
        if self.adaptive_step is not None:
            return self.adaptive_step.take(plan)  # it steps the optimizer, between two measurements
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {}

    def skip_step(self) -> None:
        """Step the optimizer without gradients, because Lightning counts the run's steps by it.

        Weights and moments stay: AdamW ignores parameters without a gradient.
        """
        self.optimizer.zero_grad()
        self.optimizer.step()

    def end_step(self, prepared: PreparedRollout) -> None:
        """Count a step that was taken or skipped."""
        self.schedule.step()
        prepared.steps_taken += 1
        progress.advance()

    def microbatch_gradients(self, plan: StepPlan, k: int) -> MicrobatchGradients:
        """Return the loss and gradients of micro-batch k by itself, and its terms that are not finite."""
        self.optimizer.zero_grad()
        output = self.forward(plan, k)
        inputs, _ = loss_inputs(plan, k, output, plan.old_logprobs(k, output.logp))
        terms = broken_terms(self.algorithm.terms, inputs)
        loss, _ = self.algorithm.loss(inputs)
        if self.sharded:
            reduce_over_copies(self.policy, now=True)
        self.backward_on_rank(loss)
        gradients = []
        for parameter in all_parameters(self.optimizer):
            gradients.append(parameter.grad)
        return MicrobatchGradients(loss.detach(), gradients, terms)


def without_groups(rows: list[int], groups: list[int], group_size: int) -> list[int]:
    """Return the rows that belong to none of some groups."""
    others = []
    for i in rows:
        if i // group_size not in groups:
            others.append(i)
    return others
