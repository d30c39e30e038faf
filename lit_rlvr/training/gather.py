"""The groups of all ranks, as an advantage sees them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.advantages import Advantage, GroupBatch
from lit_rlvr.advantages.base import impute
from lit_rlvr.distributed.collectives import all_max, gather_columns, gather_rows, rank, to_device
from lit_rlvr.rewards.base import reward_weights_of
from lit_rlvr.types import TURN_REWARDS, Rollout


def gather_groups(rollout: Rollout, rewards: Tensor, advantage: Advantage) -> GroupBatch:
    """Return the groups of all ranks, with what an advantage needs of them.

    Collective: call it on every rank.

    Args:
        rollout: of this rank.
        rewards: (P, G) in place of the rollout's, on the device of training; where there is none, the mean of the
            group's others replaces it.
        advantage: says whether it needs parts, weights or tokens.
    """
    device = rewards.device
    columns = {  # (P, G) each
        "rewards": impute(rewards, to_device(~rollout.has_reward, device)),
        "correct": rollout.correct,
        "lengths": rollout.lengths,
        "has_reward": rollout.has_reward,
        "has_correct": rollout.has_correct,
    }
    if rollout.reference_rewards is not None:
        columns["reference_rewards"] = rollout.reference_rewards
    parts: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    if advantage.needs_parts:
        failed = torch.tensor([[status == "error" for status in group] for group in rollout.statuses])  # (P, G)
        sample_weights = []  # P
        for prompt in rollout.prompts:
            sample_weights.append(reward_weights_of(prompt.sample, rollout.weights))
        for name, part in rollout.parts.items():
            parts[name] = part.masked_fill(failed, math.nan)
            by_prompt = torch.tensor([named.get(name, 0.0) for named in sample_weights])  # (P,)
            weights[name] = by_prompt[:, None].expand(rollout.rewards.shape)  # (P, G)
    all_columns = [*columns.values(), *parts.values(), *weights.values()]
    gathered = gather_columns([to_device(column, device) for column in all_columns])
    fields: dict[str, Any] = dict(zip(columns, gathered, strict=False))
    group = GroupBatch(**fields)
    if advantage.needs_parts:
        end = len(columns) + len(parts)
        group.parts = dict(zip(parts, gathered[len(columns) : end], strict=True))
        group.weights = dict(zip(weights, (weight[:, :1] for weight in gathered[end:]), strict=True))
    if advantage.needs_tokens:
        _add_tokens(group, rollout, rewards)
    return group


def _add_tokens(groups: GroupBatch, rollout: Rollout, rewards: Tensor) -> None:
    """Fill the tables of tokens (B, T): `mask`, `turns`, `turn_rewards`, and `states` if every rank has them.

    Collective: call it on every rank.

    Args:
        groups: the groups of all ranks.
        rollout: of this rank.
        rewards: (P, G) in place of the rollout's, on the device of training.
    """
    device = rewards.device
    widest = all_max(rollout.mask.shape[1], device)
    tables = {
        "mask": (rollout.mask, False),
        "turns": (rollout.turns, -1),
        "turn_rewards": (rewards_of_turns(rollout, rewards.cpu()), 0),
    }
    states = rollout.states
    if not all_max(int(states is None), device):  # on any rank
        assert states is not None, "every rank has them"
        tables["states"] = (states, 0)
    for name, (tokens, empty) in tables.items():
        padded = pad(tokens, (0, widest - tokens.shape[1]), value=empty)
        setattr(groups, name, gather_rows(to_device(padded, device)))


def rewards_of_turns(rollout: Rollout, rewards: Tensor) -> Tensor:
    """Return the reward of each token's turn (B, T), 0 where no token is sampled; see `GroupBatch.turn_rewards`.

    Args:
        rollout: of this rank.
        rewards: (P, G) in place of the rollout's.
    """
    turns = rollout.turns
    is_last = (turns == turns.amax(1, keepdim=True)) & (turns >= 0)  # (B, T)
    if TURN_REWARDS not in rollout.parts:
        return is_last * rewards.reshape(-1, 1)
    others = rewards - rollout.rewards  # (P, G), what terms take from the rewards
    weights = torch.zeros(rewards.shape)  # (P, G)
    for p, prompt in enumerate(rollout.prompts):
        for name, weight in reward_weights_of(prompt.sample, rollout.weights).items():
            if name == TURN_REWARDS:
                weights[p] = weight
            else:  # not the sum less the turns' rewards, whose rounding would tell equal returns apart
                others[p] += weight * rollout.parts[name][p].nan_to_num()
    return weights.reshape(-1, 1) * rollout.turn_rewards + is_last * others.reshape(-1, 1)


def of_this_rank(values: Tensor, size: int) -> Tensor:
    """Return this rank's part of values of all ranks, which each have `size` of."""
    return values[rank() * size : (rank() + 1) * size]
