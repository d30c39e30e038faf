"""The base class of estimators, their registry, and the group statistics that several of them share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from lit_rlvr.common.arguments import ChecksArguments
from lit_rlvr.common.did_you_mean import did_you_mean
from lit_rlvr.common.packages import import_path
from lit_rlvr.common.user_code import check_takes
from lit_rlvr.errors import UserError

Scale = Literal["group", "batch", "none"]
EQUAL_SPREAD = 1e-8  # rewards of a group that spread no more than this count as equal


@dataclass
class GroupBatch:
    """The input of an estimator: (P, G) floats of the whole rollout, gathered over all ranks.

    Args:
        rewards: r, the weighted sum of all rewards. A completion without one (see `has_reward`) has the mean of the
            others in its group.
        correct: c in {0, 1}, never inferred from r. A completion that nothing calls right or wrong (see `has_correct`)
            has the mean of the others in its group.
        reference_rewards: s, rewards of the reference model's completions, paired by index; NaN where it has none;
            None if there are no such completions.
        lengths: sampled tokens of each completion.
        parts: each reward by its name, before its weight; NaN where it does not judge the completion. Only for
            estimators with `needs_parts`; else None.
        weights: the weight of each of `parts`; (P, 1) where rows may differ.
        has_reward: bool, False = a completion without a reward, which is out of the loss and of all statistics; by
            default all have one.
        has_correct: bool, False = no reward says whether the completion is right; by default one says it of all.
        mask: (B, T) bool, the tokens in the loss, row p * G + g. Only for estimators with `needs_tokens`; else None.
        turns: (B, T) long, the turn of the episode that each sampled token belongs to, from 0; -1 elsewhere. Only with
            `needs_tokens`.
        turn_rewards: (B, T), the reward of each token's turn. The rewards of a completion's turns sum to its reward:
            the last turn has what the others were not given. Only with `needs_tokens`; None = the last turn has the
            whole reward.
        states: (B, T) long, what the environment showed before the token's turn, as a number within its group. Only
            with `needs_tokens`; None = it is unknown.
    """

    rewards: Tensor
    correct: Tensor
    reference_rewards: Tensor | None = None
    lengths: Tensor | None = None
    parts: dict[str, Tensor] | None = None
    weights: Mapping[str, float | Tensor] | None = None
    has_reward: Tensor = None  # type: ignore[assignment]
    has_correct: Tensor = None  # type: ignore[assignment]
    mask: Tensor | None = None
    turns: Tensor | None = None
    turn_rewards: Tensor | None = None
    states: Tensor | None = None

    def __post_init__(self) -> None:
        everything = torch.ones_like(self.rewards, dtype=torch.bool)
        if self.has_reward is None:
            self.has_reward = everything
        if self.has_correct is None:
            self.has_correct = everything

    def values(self, source: Literal["correct", "reward"]) -> tuple[Tensor, Tensor]:
        """Return `correct`, in the dtype of the rewards, or the rewards (P, G), and where they are known (P, G)."""
        if source == "correct":
            return self.correct.to(self.rewards.dtype), self.has_correct
        return self.rewards, self.has_reward

    @property
    def success(self) -> Tensor:
        """Success rate p (P, 1): each group's share of correct completions among the judged ones."""
        return impute(self.correct.to(self.rewards.dtype), ~self.has_correct).mean(1, keepdim=True)


AdvantageFunction = Callable[[GroupBatch], Tensor]


@dataclass(frozen=True)
class ReferenceCompletions:
    """Completions of the reference policy, G of each prompt, which are sampled and scored as training's are.

    Args:
        rollouts: `fresh` samples them at every visit of a prompt; `pool` samples `pool_size` completions at the first
            visit, and every visit draws G of their rewards without replacement, which has the same distribution as
            long as the reference does not change.
        pool_size: None = twice the group size.
    """

    rollouts: Literal["fresh", "pool"] = "fresh"
    pool_size: int | None = None


class Advantage(ChecksArguments, ABC):
    """An estimator with options. Subclass it as a dataclass, or use any function of a `GroupBatch`.

    Training calls it once per rollout, on every rank with the same numbers. An estimator that keeps state between
    rollouts returns it in `state_dict`, which checkpoints store.

    Example:
        ```python
        from dataclasses import dataclass

        from lit_rlvr import Advantage


        @dataclass
        class Scaled(Advantage):
            scale: float = 2.0

            def __call__(self, groups):
                return self.scale * (groups.rewards - groups.rewards.mean(1, keepdim=True))  # (P, G)
        ```

    Attributes:
        min_group: smallest group size that the estimator works with.
        needs_parts: True = it uses `parts`, each reward by itself.
        needs_tokens: True = it uses `mask`, `turns`, `turn_rewards` or `states`, and may return (B, T).
        of_rewards: True = it looks at nothing but `rewards`, `has_reward` and `lengths`, so that it can compare turns
            in place of completions.
        registered_name: the short name, for messages; "" if the class is not registered.
        zero_for_equal_rewards: True = a group whose rewards are all equal gets advantages of 0, whatever else differs.
            Ranks then share the work by the tokens of the other groups.
        min_valid_fraction: share of mixed groups (whose rewards differ) that an iteration needs; further prompts are
            sampled until there are that many. None = no minimum.
    """

    config_key = "model.advantage"
    min_group: int = 1
    needs_parts: bool = False
    needs_tokens: bool = False
    of_rewards: bool = False
    registered_name: str = ""
    zero_for_equal_rewards: bool = False
    min_valid_fraction: float | None = None

    @abstractmethod
    def __call__(self, groups: GroupBatch) -> Tensor:
        """Return the advantages (P, G) of the groups, in the dtype of the rewards.

        With `needs_tokens`, (B, T) gives each token its own.
        """

    @property
    def reference_completions(self) -> ReferenceCompletions | None:
        """The completions whose rewards the estimator gets as `reference_rewards`; None = it needs none."""
        return None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last call, logged as `train/<name>`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save for a resume: numbers, strings, tensors and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # optional
        """Restore the result of `state_dict`."""


class GroupRelative(Advantage):
    """An estimator that compares the completions of one prompt."""

    zero_for_equal_rewards = True
    min_group = 2


REGISTRY: dict[str, type[Advantage]] = {}
_Class = TypeVar("_Class", bound=type[Advantage])


def register(name: str) -> Callable[[_Class], _Class]:
    """Register an `Advantage` under a short name; a class decorator."""

    def add(cls: _Class) -> _Class:
        if name in REGISTRY:
            raise ValueError(f"advantage {name!r} is registered twice: {REGISTRY[name]} and {cls}")
        REGISTRY[name] = cls
        cls.registered_name = name
        return cls

    return add


@dataclass
class FunctionAdvantage(Advantage):
    """A plain function of a `GroupBatch` as an estimator."""

    function: AdvantageFunction

    def __post_init__(self) -> None:
        update_wrapper(self, self.function)  # messages name the function

    def __call__(self, groups: GroupBatch) -> Tensor:
        return self.function(groups)


def resolve_advantage(advantage: AdvantageFunction | str) -> Advantage:
    """Return the estimator that a registered name, a dotted path to a class or function, or a function stands for.

    Raises:
        UserError: the name is neither registered nor importable, or the object it names cannot be called.
    """
    if isinstance(advantage, Advantage):
        return advantage
    if not isinstance(advantage, str):
        check_takes(advantage, "groups")
        return FunctionAdvantage(advantage)
    if advantage in REGISTRY:
        return REGISTRY[advantage]()
    known = ", ".join(sorted(REGISTRY))
    if "." not in advantage:
        hint = did_you_mean(advantage, REGISTRY, f"use one of {known}, or a dotted path")
        raise UserError(f"advantage: {advantage!r} is not registered; {hint}")
    imported = import_path("advantage", advantage)
    if not callable(imported):
        raise UserError(f"advantage: {advantage!r} is neither a class nor a function; registered names: {known}")
    if inspect.isabstract(imported):
        raise UserError(f"advantage: {advantage!r} is abstract, it lacks {', '.join(imported.__abstractmethods__)}")
    return resolve_advantage(imported() if isinstance(imported, type) else imported)


def impute(values: Tensor, missing: Tensor) -> Tensor:
    """Return `values` (P, G) with missing ones replaced by the mean of the rest of their group.

    So the group's mean is that of the rest. If all are missing, they become 0.

    Args:
        values: (P, G).
        missing: (P, G) bool.
    """
    if not missing.any():
        return values  # itself: a copy with other strides may be summed in another order
    count = (~missing).sum(1, keepdim=True).to(values.dtype)
    mean = torch.where(missing, 0.0, values).sum(1, keepdim=True) / count.clamp(min=1)
    return torch.where(missing, mean, values)


def group_std(rewards: Tensor, known: Tensor, unbiased: bool = False) -> Tensor:
    """Return each group's population standard deviation (P, 1), or, with `unbiased`, the sample one of TRL and verl.

    Args:
        rewards: (P, G).
        known: (P, G) bool, the rewards that count.
        unbiased: divide by one less than their number.
    """
    correction = int(unbiased)
    std = impute(rewards, ~known).std(dim=1, correction=correction, keepdim=True)  # (P, 1)
    counted = (known.sum(1, keepdim=True) - correction).clamp(min=1).to(std.dtype)
    return std * (torch.full_like(counted, rewards.shape[1] - correction) / counted).sqrt()  # exactly 1 if all count


def is_mixed(rewards: Tensor, known: Tensor) -> Tensor:
    """Return (P, 1) bool, True for groups whose known rewards differ."""
    highest = torch.where(known, rewards, -torch.inf).amax(1, keepdim=True)
    lowest = torch.where(known, rewards, torch.inf).amin(1, keepdim=True)
    return ~(highest - lowest <= EQUAL_SPREAD)  # NaN differs


def require_lengths(groups: GroupBatch, advantage: str) -> Tensor:
    """Return the completions' lengths (P, G), in the dtype of the rewards.

    Raises:
        UserError: the batch has no lengths; the message names the advantage.
    """
    if groups.lengths is None:
        raise UserError(f"advantage {advantage}: needs the completions' lengths")
    return groups.lengths.to(groups.rewards.dtype)


def centered(rewards: Tensor, known: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return `r - mu` (P, G), exactly 0 in groups of equal rewards (never a rounding residue) and where not known.

    Args:
        rewards: (P, G).
        known: (P, G) bool, the rewards that count.
        weights: (P, G) of the rewards in mu; None = equal ones. mu is 0 in a group without any weight.

    Raises:
        UserError: a group has only one completion, so there is nothing to compare it with.
    """
    if rewards.shape[1] < 2:
        raise UserError(
            "this advantage compares the completions of a prompt with each other, and there is only one: "
            "use a group size of 2 or more, or advantage: reinforce"
        )
    if weights is None:
        mean = impute(rewards, ~known).mean(1, keepdim=True)
    else:
        weights = weights * known
        total = weights.sum(1, keepdim=True)
        mean = (weights * rewards).sum(1, keepdim=True) / torch.where(total > 0, total, 1.0)
    return torch.where(is_mixed(rewards, known) & known, rewards - mean, 0.0)


def standardised(rewards: Tensor, known: Tensor, eps: float, unbiased: bool = False, scale: Scale = "group") -> Tensor:
    """Return `(r - mu) / (sd + eps)` (P, G), exactly 0 where rewards are equal (even with eps = 0) or not known.

    Args:
        rewards: (P, G).
        known: (P, G) bool, the rewards that count.
        eps: added to sd.
        unbiased: sd is the sample deviation.
        scale: sd is that of the `group`, or of the whole `batch`; `none` does not divide.
    """
    if scale == "none":
        return centered(rewards, known)
    shape = (1, -1) if scale == "batch" else rewards.shape  # (1, P G)
    values = rewards.reshape(shape)
    mask = known.reshape(shape)
    std = torch.where(is_mixed(values, mask), group_std(values, mask, unbiased) + eps, 1.0)  # (1, 1) or (P, 1)
    return centered(rewards, known) / std
