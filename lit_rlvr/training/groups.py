"""The groups of all ranks, as an advantage sees them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.advantages import Advantage, GroupBatch
from lit_rlvr.distributed.collectives import all_max, gather_rows, to_device
from lit_rlvr.types import Rollout


def gather_groups(rollout: Rollout, rewards: Tensor, advantage: Advantage) -> GroupBatch:
    """Return the groups of all ranks, with what an advantage needs of them. Collective: call it on every rank.

    Args:
        rollout: of this rank. rewards: (P, G) in place of the rollout's, on the device of training.
    """
    device = rewards.device

    def gathered(local: Tensor) -> Tensor:
        return gather_rows(to_device(local, device))

    reference = rollout.reference_rewards
    group = GroupBatch(
        rewards=gather_rows(rewards),
        correct=gathered(rollout.correct),
        reference_rewards=None if reference is None else gathered(reference),
        lengths=gathered(rollout.lengths),
        rewarded=gathered(rollout.rewarded),
        judged=gathered(rollout.judged),
    )
    if advantage.needs_parts:
        failed = torch.tensor([[status == "error" for status in one] for one in rollout.statuses])  # (P, G)
        group.parts = {name: gathered(part.masked_fill(failed, math.nan)) for name, part in rollout.parts.items()}
        group.weights = rollout.weights
    if advantage.needs_tokens:
        widest = all_max(rollout.mask.shape[1], device)
        mask, turns = (
            pad(values, (0, widest - values.shape[1]), value=empty)
            for values, empty in ((rollout.mask, False), (rollout.turns, -1))
        )
        group.mask, group.turns = gathered(mask), gathered(turns)
    return group
