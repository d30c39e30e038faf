"""One optimizer step as tensors: its rows, their weights in the loss, and its micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_rlvr.distributed.collectives import index_tensor, to_device
from lit_rlvr.objectives import loglinear_old
from lit_rlvr.training.loss import LossModule
from lit_rlvr.training.step.microbatches import StepLimits, cut_step
from lit_rlvr.training.step.normalisers import ObservedTokens, count_normalisers, observed_tokens, weigh_tokens
from lit_rlvr.training.step.prepared import PreparedRollout
from lit_rlvr.training.step.token_choice import chosen_tokens


@dataclass
class StepPlan:
    """One optimizer step of this rank.

    Args:
        prepared: the rollout.
        groups: positions of this rank's groups in the step.
        mask: (B, T) bool, the tokens in the loss.
        rollout_logp: (B, T) log-probabilities at sampling time.
        plain_weight: (B, T) weight of each token in the loss, 0 outside this step's groups, without the importance
            correction.
        in_objective: (B, T) bool, the tokens whose objective counts; None = all.
        selected: (B, T) bool, the tokens that `LossModule.select_tokens` chose; None = the loss chooses none.
        correct: (B,) bool, the completions that a reward calls right; None = neither the loss nor a term needs it.
        observed: the tokens that an environment answered; None = no term needs them.
        sequence_share: a sequence's weight in a sequence-level loss: 1 / the step's sequences on all ranks.
        microbatches: lists of rows. The first `num_counted` of them count; the others repeat a micro-batch with
            weight 0, so that with sharded weights a rank with less work stays in lockstep with the others, and a rank
            without work has the metrics that all ranks sum.
        indices: the same rows as tensors on the device.
        num_counted: how many of them count.
    """

    prepared: PreparedRollout
    groups: list[int]
    mask: Tensor
    rollout_logp: Tensor
    plain_weight: Tensor
    in_objective: Tensor | None
    selected: Tensor | None
    correct: Tensor | None
    observed: ObservedTokens | None
    sequence_share: float
    microbatches: list[list[int]]
    indices: list[Tensor]
    num_counted: int

    def is_counted(self, k: int) -> bool:
        """Return whether micro-batch k counts."""
        return k < self.num_counted

    def old_logprobs(self, k: int, logp: Tensor) -> Tensor:
        """Return the log-probabilities (rows, T) of micro-batch k under the policy at the iteration's beginning.

        - In the first step: the current ones, because the weights are still the same.
        - In later steps: those that `PreparedRollout.keep_old_logprobs` kept, or that were computed before the first.
        - Else, with `prox_logp_method: loglinear`: between the current ones and those at sampling time.

        Args:
            k: number of the micro-batch.
            logp: (rows, T) under the current policy.
        """
        prepared = self.prepared
        index = self.indices[k]
        logp = logp.detach()
        if prepared.is_first_step:
            return logp
        if prepared.old_logp is not None:
            return prepared.old_logp[index]
        age = to_device(prepared.age[self.microbatches[k]], logp.device)
        return loglinear_old(logp, self.rollout_logp[index], age, prepared.steps_taken)


def plan_step(
    prepared: PreparedRollout,
    groups: list[int],
    algorithm: LossModule,
    limits: StepLimits,
) -> StepPlan:
    """Count the step's normalisers over all ranks, choose its tokens, and cut its live rows.

    Collective: call it on every rank.

    Args:
        prepared: the rollout.
        groups: positions of this rank's groups in the step.
        algorithm: its loss says how tokens are averaged, and which are chosen.
        limits: how rows are cut, and where the step's tensors go.
    """
    rollout = prepared.rollout
    options = algorithm.loss_options
    device = limits.device
    rows = []
    for p in groups:
        for g in range(rollout.group_size):
            rows.append(p * rollout.group_size + g)
    mask = to_device(rollout.mask, device)
    rollout_logp = to_device(rollout.rollout_logprobs, device)
    normalisers = count_normalisers(rollout, rows, options, device)
    longest = rollout.sampling.max_sampled_tokens
    plain_weight = weigh_tokens(mask, rollout, rows, options.aggregation, normalisers, longest)
    in_objective, selected = chosen_tokens(prepared, rows, mask, rollout_logp, algorithm)
    correct = None
    if algorithm.needs("correct"):
        correct = to_device(rollout.known_correct.flatten() > 0, device)
    observed = None
    if algorithm.needs("observation_logp"):
        observed = observed_tokens(rollout, rows, options.aggregation, normalisers, device)
    live = set(prepared.live)
    microbatches, num_counted = cut_step(rollout, [i for i in rows if i in live], limits)
    return StepPlan(
        prepared=prepared,
        groups=groups,
        mask=mask,
        rollout_logp=rollout_logp,
        plain_weight=plain_weight,
        in_objective=in_objective,
        selected=selected,
        correct=correct,
        observed=observed,
        sequence_share=1.0 / normalisers.sequences,
        microbatches=microbatches,
        indices=[index_tensor(microbatch, device) for microbatch in microbatches],
        num_counted=num_counted,
    )
