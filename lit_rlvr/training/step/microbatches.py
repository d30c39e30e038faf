"""Micro-batches: how rows are cut under a budget of tokens, and their log-probabilities without gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_max, index_tensor
from lit_rlvr.policy.layout import cut_microbatches
from lit_rlvr.policy.policy import Policy
from lit_rlvr.types import Rollout


@dataclass(frozen=True)
class StepLimits:
    """How a step is cut into micro-batches.

    Args:
        device: where the step's tensors go.
        tokens_per_microbatch: the most input tokens in a micro-batch.
        shared_prefix: whether a prompt is computed once for its group.
        in_lockstep: run equally many micro-batches on every rank, because gathering sharded weights needs all ranks.
    """

    device: torch.device
    tokens_per_microbatch: int
    shared_prefix: bool
    in_lockstep: bool


def cut_step(rollout: Rollout, live: list[int], limits: StepLimits) -> tuple[list[list[int]], int]:
    """Return the micro-batches of a step, as many as all ranks run together, and how many of them count.

    Collective: call it on every rank.

    Args:
        rollout: the rollout of this rank.
        live: this rank's rows in the step that can have a gradient.
        limits: how rows are cut.
    """
    microbatches = cut_rows(rollout, live, limits.tokens_per_microbatch, limits.shared_prefix)
    num_counted = len(microbatches)
    most = all_max(num_counted, limits.device)
    if not limits.in_lockstep:
        # A rank that runs none would lack the metrics that all ranks sum.
        most = max(num_counted, min(most, 1))
    repeated = microbatches[0] if microbatches else [0]
    return microbatches + [repeated] * (most - num_counted), num_counted


def cut_rows(rollout: Rollout, rows: list[int], budget: int, shared_prefix: bool) -> list[list[int]]:
    """Cut rows of a rollout into micro-batches of at most `budget` input tokens."""
    prompt_lengths = []
    for prompt in rollout.prompts:
        prompt_lengths.append(len(prompt.token_ids))
    lengths = []
    for length, group in zip(prompt_lengths, rollout.completions, strict=True):
        for completion in group:
            if shared_prefix:
                repeated = 0
            else:
                repeated = length * (len(completion.sequence_lengths) - 1)
            lengths.append(len(completion.token_ids) + repeated)
    return cut_microbatches(prompt_lengths, lengths, rows, rollout.group_size, budget, shared_prefix)


@torch.no_grad()
def logprobs_in_microbatches(
    policy: Policy, rollout: Rollout, rows: list[int], budget: int, in_lockstep: bool, entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (B, T) log-probabilities and entropies of some rows under a policy, without gradients; 0 in the others.

    Args:
        policy: the policy.
        rollout: this rank's rollout.
        rows: the rows.
        budget: the most input tokens in a micro-batch.
        in_lockstep: as in `StepLimits`.
        entropy: False = the entropies are all 0.
    """
    logp = torch.zeros(rollout.mask.shape, device=policy.device)
    entropies = torch.zeros_like(logp)
    microbatches = cut_rows(rollout, rows, budget, policy.shared_prefix)
    if in_lockstep:
        idle = all_max(len(microbatches), policy.device) - len(microbatches)
    else:
        idle = 0
    for microbatch in microbatches:
        index = index_tensor(microbatch, policy.device)
        logp[index], of_rows = policy.logprobs(rollout, microbatch, entropy=entropy)
        if of_rows is not None:
            entropies[index] = of_rows
    for _ in range(idle):  # gathering sharded weights needs all ranks
        policy.logprobs(rollout, [0], entropy=entropy)
    return logp, entropies
