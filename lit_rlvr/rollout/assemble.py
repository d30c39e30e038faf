"""Assembles completions and scores into the tensors of a `Rollout`; joins rollouts and takes groups out of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.advantages.base import impute
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.sampling import Sampling
from lit_rlvr.types import Completion, Prompt, Rollout, Status, pad_completions

LIST_FIELDS = ("prompts", "completions", "statuses", "details", "repeats")
TOKEN_FIELDS = ("token_ids", "mask", "rollout_logprobs", "versions", "stale_cache")
GROUP_FIELDS = ("rewards", "correct", "has_correct", "reference_rewards")
"""The fields of a rollout that groups have, next to `parts`: lists of P; tensors (B, T) and (P, G), or None."""


def assemble(
    prompts: list[Prompt],
    completions: list[list[Completion]],
    scores: Scores,
    sampling: Sampling,
    mask_truncated: bool = False,
    exact: bool = False,
    version: int | None = None,
    has_teacher: bool = False,
) -> Rollout:
    """Combine completions and scores into a `Rollout`.

    A completion without a reward, because its check failed or no reward judges it, gets the mean reward and correctness
    of the rest of its group, so that it changes neither mean, and is masked out of the loss; unless it only lacks a
    judge and a teacher scores its tokens. With `mask_truncated`, truncated completions are masked out too, but keep
    their rewards.

    Args:
        prompts: P prompts.
        completions: P lists of G.
        scores: (P, G).
        sampling: how they were sampled.
        mask_truncated: mask truncated completions out of the loss.
        exact: whether the engine's log-probabilities equal the trainer's.
        version: of the weights that sampled the completions; None = there is no training.
        has_teacher: whether a teacher scores them.
    """
    token_ids, sampled, logprobs = pad_completions(completions)
    return Rollout(
        prompts=prompts,
        completions=completions,
        token_ids=token_ids,
        mask=tokens_in_loss(sampled, completions, scores.statuses, mask_truncated, has_teacher),
        rollout_logprobs=logprobs,
        rewards=impute(scores.rewards, ~scores.has_reward),
        correct=impute(scores.correct, ~scores.has_correct),
        has_correct=scores.has_correct,
        parts=scores.parts,
        statuses=scores.statuses,
        sampling=sampling,
        exact=exact,
        weights=scores.weights,
        details=scores.details,
        versions=None if version is None else torch.full(token_ids.shape, version),
    )


def tokens_in_loss(
    sampled: Tensor,
    completions: list[list[Completion]],
    statuses: list[list[Status]],
    mask_truncated: bool,
    has_teacher: bool,
) -> Tensor:
    """Return the tokens in the loss (B, T): the sampled ones, without completions that `assemble` masks out.

    Args:
        sampled: (B, T) bool.
        completions: P lists of G.
        statuses: P lists of G.
        mask_truncated: as for `assemble`.
        has_teacher: as for `assemble`.
    """
    without_reward = ("error",) if has_teacher else ("error", "unjudged")
    masked_out = []
    for group, statuses_of_group in zip(completions, statuses, strict=True):
        for completion, status in zip(group, statuses_of_group, strict=True):
            masked_out.append(status in without_reward or (mask_truncated and completion.truncated))
    return sampled & ~torch.tensor(masked_out, dtype=torch.bool)[:, None]


def join(first: Rollout, second: Rollout) -> Rollout:
    """Concatenate two rollouts with the same sampling and group size."""

    def stack(upper: Tensor | None, lower: Tensor | None) -> Tensor | None:
        if upper is None or lower is None:
            return None
        width = max(upper.shape[1], lower.shape[1])  # T, or G of both
        return torch.cat([pad(part, (0, width - part.shape[1])) for part in (upper, lower)])

    joined: dict[str, Any] = {}
    for name in LIST_FIELDS:
        joined[name] = getattr(first, name) + getattr(second, name)
    for name in (*TOKEN_FIELDS, *GROUP_FIELDS):
        joined[name] = stack(getattr(first, name), getattr(second, name))
    joined["parts"] = {name: stack(part, second.parts[name]) for name, part in first.parts.items()}
    return replace(first, **joined)


def take_group(rollout: Rollout, p: int) -> Rollout:
    """Return a rollout of one group alone, with copies of its tensors: a view would be sent with its whole tensor."""
    group = slice(p, p + 1)
    rows = slice(p * rollout.group_size, (p + 1) * rollout.group_size)
    taken: dict[str, Any] = {}
    for name in LIST_FIELDS:
        taken[name] = getattr(rollout, name)[group]
    for name in (*TOKEN_FIELDS, *GROUP_FIELDS):
        values = getattr(rollout, name)
        if values is None:
            taken[name] = None
        else:
            taken[name] = values[rows if name in TOKEN_FIELDS else group].clone()
    taken["parts"] = {name: part[group].clone() for name, part in rollout.parts.items()}
    return replace(rollout, **taken, kept=None)
