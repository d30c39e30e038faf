"""The inputs of the objective for a micro-batch, with the weights of the importance correction."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import rank
from lit_rlvr.objectives import LossInputs, Stats, importance_weights, log_ratio, masked_mean
from lit_rlvr.options import Importance
from lit_rlvr.policy.logprobs import PolicyOutput
from lit_rlvr.training.step.plan import StepPlan
from lit_rlvr.training.step.prepared import PreparedRollout


def loss_inputs(plan: StepPlan, k: int, output: PolicyOutput, old_logp: Tensor) -> tuple[LossInputs, Stats]:
    """Return the objective's inputs for micro-batch k, and sums over its tokens.

    Args:
        plan: the step.
        k: number of the micro-batch.
        output: (rows, T) each, the forward pass of the micro-batch, with entropies.
        old_logp: (rows, T) what `StepPlan.old_logprobs` returned.
    """
    logp = output.logp
    entropy = output.entropy
    assert entropy is not None
    prepared = plan.prepared
    is_counted = float(plan.is_counted(k))
    index = plan.indices[k]
    mask = plan.mask[index]
    observation = observation_inputs(plan, k, logp)
    if observation:
        observed = observation["observed"]
        logp, old_logp, entropy = (torch.where(observed, 0.0, values) for values in (logp, old_logp, entropy))
    rollout_logp = plan.rollout_logp[index]
    if prepared.rollout.is_demonstration:
        rollout_logp = old_logp
    advantages = prepared.advantages[index]
    token_correction, row_correction = correction_weights(
        logp, old_logp, rollout_logp, mask, advantages, prepared.importance
    )
    plain_weight = plan.plain_weight[index] * is_counted
    token_weight = plain_weight * token_correction
    if plan.in_objective is not None:
        token_weight = token_weight * plan.in_objective[index]
    row = index + rank() * len(plan.mask)
    inputs = LossInputs(
        logp=logp,
        old_logp=old_logp,
        mask=mask,
        advantages=advantages,
        token_weight=token_weight,
        row_weight=row_correction * plan.sequence_share * is_counted,
        prompt=row // prepared.rollout.group_size,
        plain_weight=plain_weight,
        rollout_logp=rollout_logp,
        ref_logp=None if prepared.ref_logp is None else prepared.ref_logp[index],
        entropy=entropy,
        selected=None if plan.selected is None else plan.selected[index],
        correct=None if plan.correct is None else plan.correct[index],
        divergence=output.divergence,
        expert_imbalance=output.expert_imbalance,
        row=row,
        **observation,
    )
    stats = input_stats(inputs, token_correction, prepared)
    if prepared.is_first_step and output.flips is not None:
        stats["expert_flips"] = (output.flips * mask).sum()
    return inputs, stats


def observation_inputs(plan: StepPlan, k: int, logp: Tensor) -> dict[str, Tensor]:
    """Return the fields of `LossInputs` about the tokens that an environment answered; {} if no term needs them.

    Args:
        plan: the step.
        k: number of the micro-batch.
        logp: (rows, T) under the current policy.
    """
    if plan.observed is None:
        return {}
    observed = plan.observed.mask[plan.indices[k]]
    return {
        "observation_logp": torch.where(observed, logp, 0.0),
        "observed": observed,
        "observation_weight": plan.observed.weight[plan.indices[k]] * float(plan.is_counted(k)),
    }


def input_stats(x: LossInputs, token_correction: Tensor, prepared: PreparedRollout) -> Stats:
    """Return sums over the tokens of a micro-batch that do not depend on the objective.

    Args:
        x: the objective's inputs.
        token_correction: (B, T) the weights of the importance correction.
        prepared: the rollout.
    """
    mask = x.mask
    assert x.entropy is not None
    stats = {"tokens": mask.sum(), "entropy": torch.where(mask, x.entropy.detach(), 0.0).sum()}
    if x.observed is not None:
        stats["observed_tokens"] = x.observed.sum()
    if not prepared.rollout.is_demonstration:
        engine_log_ratio = log_ratio(x.old_logp, x.rollout_logp, mask)
        engine_ratio = engine_log_ratio.exp() * mask
        stats |= {
            "engine_difference": engine_log_ratio.abs().sum(),
            "engine_ratio": engine_ratio.sum(),
            "engine_ratio_squared": engine_ratio.square().sum(),
        }
    if prepared.importance.drops:
        stats["importance_dropped"] = ((token_correction == 0) & mask).sum()
    if prepared.logs_correction:
        stats |= {"weight": (token_correction * mask).sum(), "weight_squared": (token_correction * mask).square().sum()}
    return stats


def correction_weights(
    logp: Tensor, old_logp: Tensor, rollout_logp: Tensor, mask: Tensor, advantages: Tensor, correction: Importance
) -> tuple[Tensor, Tensor]:
    """Return the weights of `importance_weights`; those of sequences that `off_policy_threshold` drops are 0.

    Args:
        logp: (B, T) log-probabilities under the current policy.
        old_logp: (B, T) under the policy at the beginning of the iteration.
        rollout_logp: (B, T) at sampling time.
        mask: (B, T) bool, the tokens in the loss.
        advantages: (B, 1) or (B, T).
        correction: the options, with a correction chosen.

    Returns:
        Weights of tokens (B, T) and of rows (B,).
    """
    tokens, rows = importance_weights(
        old_logp, rollout_logp, mask, correction.mode, correction.cap, correction.floor, correction.veto
    )
    if correction.off_policy_threshold is None:
        return tokens, rows
    drift = masked_mean(log_ratio(rollout_logp, logp.detach(), mask), mask)  # (B,)
    kept = (torch.where(mask, advantages, 0.0).sum(1) >= 0) | (drift <= correction.off_policy_threshold)
    return tokens * kept[:, None], rows * kept
