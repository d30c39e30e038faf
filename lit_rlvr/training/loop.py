"""The training loop. An iteration is `collect`, from prompts to scored groups, then `train`, to optimizer steps.

Lightning calls both for each batch of prompts: `collect` through `RolloutCallback.on_train_batch_start` and
`RolloutSource.next`, `train` through `RLVRModule.training_step`. What is timed, logged and shown stands there, around
these lines. Each function they call is one idea, in the file that its import or its object names:

    source       rollout/source.py, with rollout/sync.py, or rollout/queue.py if `rollout.staleness` is above 0
    updater      training/step/updater.py: the policy, its optimizer, and what an optimizer step needs besides
    algorithm    algorithms/ (the objective), training/loss.py (advantages, loss and terms)

Shapes: P prompts of this rank, G completions of each, B = P x G rows, T tokens of the longest completion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any

from lit_rlvr.objectives import Stats
from lit_rlvr.training.step.failures import find_not_finite
from lit_rlvr.training.step.loss_inputs import loss_inputs
from lit_rlvr.training.step.memory import retry_smaller
from lit_rlvr.training.step.plan import StepPlan, plan_step
from lit_rlvr.training.step.prepared import PreparedRollout
from lit_rlvr.training.step.updater import Updater
from lit_rlvr.training.trace import Trace
from lit_rlvr.types import Prompt, PromptBatch, Rollout


class CollectSteps(ABC):
    """The steps of `collect`, which a source of rollouts implements."""

    @abstractmethod
    def sync_weights(self, prompts: list[Prompt] | None) -> None:
        """Give the engine the policy's weights.

        Args:
            prompts: those that a probe of the engine may score, if one is due; None = no probe.
        """

    @abstractmethod
    def generate(self, batch: PromptBatch) -> tuple[Rollout, Any]:
        """Return scored groups of this rank, and summaries of the groups of all ranks."""

    def wants_more(self, summaries: Any, rounds: int, batch: PromptBatch) -> bool:
        """Return whether too few groups are mixed after some rounds of sampling."""
        return False

    def generate_more(self, rollout: Rollout, summaries: Any, rounds: int, batch: PromptBatch) -> tuple[Rollout, Any]:
        """Return the groups with those of further prompts, and the summaries of them all.

        Args:
            rollout: of the earlier rounds.
            summaries: what all ranks know of them.
            rounds: sampling rounds, this one included.
            batch: says where the data's cursor is; it moves on.
        """
        return rollout, summaries

    @abstractmethod
    def choose_groups(self, rollout: Rollout, summaries: Any, batch: PromptBatch) -> Any:
        """Return the summaries with the groups to train on numbered, and count successes and mixed groups.

        Args:
            rollout: gets `kept` if only mixed groups are trained on.
            summaries: what all ranks know of their groups.
            batch: the prompts of the first round; it gets the successes of all prompts.
        """

    @abstractmethod
    def add_reference_rewards(self, rollout: Rollout) -> None:
        """Add the rewards of a reference policy's completions, if the advantage asks for them."""

    @abstractmethod
    def balance(self, rollout: Rollout, summaries: Any) -> Rollout:
        """Return this rank's share of the chosen groups, with as many tokens as the others have."""

    def release_engine(self) -> None:  # noqa: B027  # an engine that samples during training is left as it is
        """Free the engine's memory for training."""


def collect(source: CollectSteps, batch: PromptBatch) -> Rollout:
    """Return scored groups of completions for a batch of prompts.

    Collective: call it on every rank.

    Args:
        source: generates and scores.
        batch: the prompts of this rank.
    """
    source.sync_weights(batch.prompts)  # the engine samples with the policy as it is now
    rollout, summaries = source.generate(batch)  # generate, score, assemble; summaries of the groups of all ranks
    rounds = 1
    while source.wants_more(summaries, rounds, batch):  # dynamic sampling, until enough are mixed (DAPO, eq. 11)
        rounds += 1
        rollout, summaries = source.generate_more(rollout, summaries, rounds, batch)
    summaries = source.choose_groups(rollout, summaries, batch)  # which groups to train on
    source.add_reference_rewards(rollout)  # of a reference policy for the same prompts, if the advantage asks (AAPO)
    rollout = source.balance(rollout, summaries)  # as many tokens on each rank
    source.release_engine()  # its memory is free for training
    return rollout


def train(updater: Updater, rollout: Rollout, step: int, trace: Trace | None = None) -> Iterator[dict[str, float]]:
    """Take the optimizer steps on a rollout; yield the metrics of each.

    Collective: call it on every rank.

    Args:
        updater: has the policy, the algorithm and the optimizer.
        rollout: scored groups of this rank.
        step: the number of the first optimizer step in the run, from 1.
        trace: records what the steps do with some tokens.
    """
    algorithm = updater.algorithm
    initial = updater.initial_logprobs(rollout)  # (B, T) each; None = nothing needs it
    advantages = algorithm.estimate_advantages(rollout, initial)  # from the rewards of all ranks' groups
    rollout.advantages = advantages.per_completion  # (P, G), for logs; the loss gets advantages.per_row
    epoch = algorithm.split_groups(rollout)  # this rank's groups of each optimizer step
    minibatches = epoch * algorithm.epochs_per_rollout
    prepared = updater.prepare(rollout, advantages.per_row, initial, minibatches, step, trace)
    metrics = dict(advantages.metrics)
    for minibatch in minibatches:
        attempt = partial(accumulate, updater, prepared, minibatch, step)
        plan, sums = retry_smaller(updater.budget, rollout, attempt)  # in smaller micro-batches if memory runs out
        norm = updater.reduce_and_clip()  # of the gradient over all ranks, before it is clipped
        not_finite = find_not_finite(sums.get("loss"), norm)  # None = loss and gradient are finite on all ranks
        is_finite = not_finite is None
        updater.skipped.count(is_finite, rollout.is_unrewarded)  # a step is skipped if either fails
        if not_finite is not None:
            updater.report_not_finite(plan, not_finite, step)  # saves its groups; too many in a row end the run
        metrics |= updater.measure(plan, sums, norm, is_finite)
        if is_finite and not rollout.is_unrewarded:  # a reward judged some of it (RolloutCallback.fill_batch)
            metrics |= updater.take_step(plan)
        else:
            updater.skip_step()
        updater.end_step(prepared)
        yield metrics
        metrics = {}
        step += 1


def accumulate(updater: Updater, prepared: PreparedRollout, minibatch: list[int], step: int) -> tuple[StepPlan, Stats]:
    """Accumulate this rank's gradients over the micro-batches of an optimizer step.

    Collective: call it on every rank.

    Args:
        updater: has the policy and the optimizer.
        prepared: the rollout.
        minibatch: positions of this rank's groups in the step.
        step: the number of the optimizer step in the run, from 1.

    Returns:
        The step's plan, and sums over the tokens that were run.
    """
    plan = plan_step(prepared, minibatch, updater.algorithm, updater.limits)  # normalisers, micro-batches
    sums = Stats()
    updater.begin_step(plan)
    with updater.dropout(step):
        for k in range(len(plan.microbatches)):
            output = updater.forward(plan, k)  # (rows, T) log-probabilities and entropies
            old_logp = plan.old_logprobs(k, output.logp)  # at the iteration's beginning; in its first step, as now
            prepared.keep_old_logprobs(plan.indices[k], old_logp)  # of its first step, for later ones
            inputs, stats = loss_inputs(plan, k, output, old_logp)
            updater.record(plan, k, inputs)  # for `lit-rlvr explain`
            loss, loss_stats = updater.algorithm.loss(inputs)  # the objective and the terms
            updater.backward(plan, k, loss)
            weight = float(plan.is_counted(k))  # 0 for one that is run only because other ranks have as many
            for name, value in (stats | loss_stats | {"loss": loss.detach()}).items():
                sums[name] = sums.get(name, 0) + weight * value.double()
    return plan, sums
