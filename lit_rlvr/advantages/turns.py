"""Estimators of turns: the return of each turn, compared with those of other turns of its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_rlvr.advantages.base import REGISTRY, Advantage, GroupBatch, impute, register, standardised
from lit_rlvr.advantages.composed import Composed
from lit_rlvr.common.arguments import check_within
from lit_rlvr.common.returned import require_advantages
from lit_rlvr.errors import UserError
from lit_rlvr.objectives import discounted_sum


@dataclass
class TurnTable:
    """The K turns of B completions; without tokens, each completion is one turn.

    Args:
        exists: (B, K) bool, the turns that there are.
        known: (B, K) bool, those of them whose completion has a reward.
        returns: (B, K) float64, `sum_{j >= k} discount^(j - k) r_j`, r_j the reward of turn j.
        lengths: (B, K) float64, sampled tokens; None = they are unknown.
        states: (B, K) long, what was shown before each turn, by a number within its group; None = it is unknown.
    """

    exists: Tensor
    known: Tensor
    returns: Tensor
    lengths: Tensor | None
    states: Tensor | None


def turn_table(groups: GroupBatch, discount: float) -> TurnTable:
    """Return the turns of the completions, with their discounted returns."""
    rewards = groups.rewards.double().reshape(-1, 1)  # (B, 1)
    has_reward = groups.has_reward.reshape(-1, 1)  # (B, 1)
    turns = groups.turns
    if turns is None:
        everything = torch.ones_like(has_reward)
        lengths = None if groups.lengths is None else groups.lengths.double().reshape(-1, 1)
        return TurnTable(everything, has_reward, rewards, lengths, torch.zeros_like(everything).long())
    count = max(int(turns.max()) + 1, 1)  # K
    counts = torch.stack([(turns == k).sum(1) for k in range(count)], 1).double()
    exists = counts > 0
    if groups.turn_rewards is None:
        is_last = torch.arange(count, device=turns.device) == turns.amax(1, keepdim=True)
        own = torch.where(is_last, rewards, 0.0)
    else:
        own = of_turns(groups.turn_rewards.double(), turns, count)
    states = None if groups.states is None else of_turns(groups.states, turns, count)
    return TurnTable(exists, has_reward & exists, discounted_sum(own, discount), counts, states)


def of_turns(values: Tensor, turns: Tensor, count: int) -> Tensor:
    """Return the value (B, K) of each turn, from (B, T) values that are equal within a turn; 0 where there is none."""
    columns = []
    for k in range(count):
        is_turn = turns == k  # (B, T)
        first = is_turn.int().argmax(1, keepdim=True)  # (B, 1)
        columns.append(torch.where(is_turn.any(1), values.gather(1, first)[:, 0], 0))
    return torch.stack(columns, 1)


def spread(values: Tensor, groups: GroupBatch) -> Tensor:
    """Return values (B, K) of turns for the tokens of each turn (B, T), 0 elsewhere; (P, G) without tokens."""
    values = values.to(groups.rewards.dtype)
    if groups.turns is None:
        return values.reshape(groups.rewards.shape)
    return torch.where(groups.turns >= 0, values.gather(1, groups.turns.clamp(min=0)), 0.0)


def members(keys: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the entries that have each of the S distinct keys.

    Args:
        keys: (N,) long.
        width: the smallest M.

    Returns:
        Indices (S, M) of the entries in their order, 0 where a key has fewer than M; and (S, M) bool, True for entries.
    """
    _, key, counts = keys.unique(return_inverse=True, return_counts=True)
    order = key.argsort(stable=True)  # (N,)
    place = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[key[order]]
    shape = len(counts), max(width, int(counts.max()))
    index = torch.zeros(shape, dtype=torch.long, device=keys.device)
    index[key[order], place] = order
    is_entry = torch.zeros(shape, dtype=torch.bool, device=keys.device)
    is_entry[key[order], place] = True
    return index, is_entry


@register("step_returns")
@dataclass
class StepReturns(Composed):
    """Another estimator on the returns of turns: each with those of the same turn in the prompt's other completions.

    The return of turn k is `sum_{j >= k} discount^(j - k) r_j`. What a completion earned in other ways than by its
    turns counts in the last one. With completions of one turn it is the other estimator.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: StepReturns, init_args: {base: grpo, discount: 0.95}}
        ```

    Args:
        discount: factor of a reward for each turn that it is later.
    """

    needs_tokens = True
    zero_for_equal_rewards = False  # the turns may have earned equal sums at different times
    discount: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("[0, 1]", "advantage step_returns", discount=self.discount)
        if not self._base.of_rewards:
            known = ", ".join(sorted(name for name, cls in REGISTRY.items() if cls.of_rewards))
            raise UserError(
                f"advantage step_returns.base: {type(self._base).__name__} looks at more than rewards, so it cannot "
                f"take the returns of turns; use one of {known}, or a class with of_rewards = True"
            )

    def __call__(self, groups: GroupBatch) -> Tensor:
        table = turn_table(groups, self.discount)
        row, turn = table.exists.nonzero(as_tuple=True)  # (N,)
        if not len(row):
            return torch.zeros_like(groups.rewards)
        size = groups.rewards.shape[1]
        index, is_entry = members(row // size * table.exists.shape[1] + turn, size)
        known = table.known[row, turn][index] & is_entry
        steps = GroupBatch(
            rewards=impute(table.returns[row, turn][index], ~known),
            correct=torch.zeros_like(index),
            lengths=None if table.lengths is None else table.lengths[row, turn][index],
            has_reward=known,
            has_correct=torch.zeros_like(known),
        )
        advantages = require_advantages(self._base, self._base(steps), steps.rewards)
        values = torch.zeros_like(table.returns)
        at = index[is_entry]
        values[row[at], turn[at]] = advantages[is_entry]
        return spread(values, groups)


@register("gigpo")
@dataclass
class GiGPOAdvantage(Advantage):
    """The advantage of the episode, plus `step_weight` times that of the turn among turns with the same state.

    The first is `grpo` on the completion's reward. The second is `(R - mu) / (sd + eps)` on the discounted returns R of
    all turns of the prompt's completions before which the environment showed the same text and images; before the first
    turn the prompt is the state. A state that occurs once gives 0. With completions of one turn both are equal.

    Source: Feng et al. 2025 (GiGPO, arXiv 2505.10978), eqs. 3-8.

    Example:
        ```yaml
        model:
          class_path: GRPO
          init_args:
            advantage: {class_path: GiGPOAdvantage, init_args: {step_weight: 1.0, discount: 0.95}}
        ```

    Args:
        step_weight: weight of the turn's advantage (the paper's omega).
        discount: factor of a reward for each turn that it is later.
        scale: divide by the standard deviation of the `group`, or by nothing (`none`), which the paper also tries.
        eps: added to the standard deviation.
        unbiased_std: divide by the sample standard deviation (verl-agent) instead of the population's.
    """

    min_group = 2
    needs_tokens = True
    step_weight: float = 1.0
    discount: float = 0.95
    scale: Literal["group", "none"] = "group"
    eps: float = 1e-6
    unbiased_std: bool = False

    def __post_init__(self) -> None:
        check_within("[0, inf)", "advantage gigpo", step_weight=self.step_weight, eps=self.eps)
        check_within("[0, 1]", "advantage gigpo", discount=self.discount)

    def __call__(self, groups: GroupBatch) -> Tensor:
        table = turn_table(groups, self.discount)
        if table.states is None:
            raise UserError("advantage gigpo: needs the states before turns, and this batch has none; add `states`")
        episodes = self._compared(groups.rewards, groups.has_reward).reshape(-1, 1)  # (B, 1)
        row, turn = table.exists.nonzero(as_tuple=True)  # (N,)
        if not len(row):
            return torch.zeros_like(groups.rewards)
        size = groups.rewards.shape[1]
        index, is_entry = members(row // size * (int(table.states.max()) + 1) + table.states[row, turn], size)
        known = table.known[row, turn][index] & is_entry
        steps = self._compared(table.returns[row, turn][index], known)
        values = torch.zeros_like(table.returns)
        at = index[is_entry]
        values[row[at], turn[at]] = steps[is_entry]
        return spread(torch.where(table.exists, episodes + self.step_weight * values, 0.0), groups)

    def _compared(self, rewards: Tensor, known: Tensor) -> Tensor:
        return standardised(rewards, known, self.eps, self.unbiased_std, self.scale)
