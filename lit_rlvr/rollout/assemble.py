"""Assembles completions and scores into the tensors of a `Rollout`; joins rollouts and takes groups out of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_rlvr.advantages.base import impute
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.types import Completion, Prompt, Rollout, Sampling, Status, pad_completions


def assemble(
    prompts: list[Prompt],
    completions: list[list[Completion]],
    scores: Scores,
    sampling: Sampling,
    mask_truncated: bool = False,
    exact: bool = False,
    version: int | None = None,
    taught: bool = False,
) -> Rollout:
    """Combine completions and scores into a `Rollout`.

    A completion without a reward, because its check failed or no reward judges it, gets the mean reward and correctness
    of the rest of its group, so that it changes neither mean, and is masked out of the loss; unless it only lacks a
    judge and a teacher scores its tokens. With `mask_truncated`, truncated completions are masked out too, but keep
    their rewards.

    Args:
        completions: P lists of G. scores: (P, G).
        exact: whether the engine's log-probabilities equal the trainer's.
        version: of the weights that sampled the completions; None = there is no training.
        taught: whether a teacher scores them.
    """
    token_ids, sampled, logprobs = pad_completions(completions)
    return Rollout(
        prompts=prompts,
        completions=completions,
        token_ids=token_ids,
        mask=tokens_in_loss(sampled, completions, scores.statuses, mask_truncated, taught),
        rollout_logprobs=logprobs,
        rewards=impute(scores.rewards, scores.masked),
        correct=impute(scores.correct, ~scores.judged),
        judged=scores.judged,
        parts=scores.parts,
        statuses=scores.statuses,
        sampling=sampling,
        exact=exact,
        weights=scores.weights,
        unreadable=scores.unreadable,
        versions=None if version is None else torch.full(token_ids.shape, version),
    )


def tokens_in_loss(
    sampled: Tensor, completions: list[list[Completion]], statuses: list[list[Status]], mask_truncated: bool,
    taught: bool,
) -> Tensor:  # fmt: skip
    """Return the tokens in the loss (B, T): the sampled ones, without completions that `assemble` masks out.

    Args:
        sampled: (B, T) bool. completions, statuses: P lists of G. mask_truncated, taught: as `assemble` takes them.
    """
    without_reward = ("error",) if taught else ("error", "unjudged")
    masked_out = [
        status in without_reward or (mask_truncated and completion.truncated)
        for group, statuses_of_group in zip(completions, statuses, strict=True)
        for completion, status in zip(group, statuses_of_group, strict=True)
    ]
    return sampled & ~torch.tensor(masked_out, dtype=torch.bool)[:, None]


def join(first: Rollout, second: Rollout) -> Rollout:
    """Concatenate two rollouts with the same sampling and group size."""
    width = max(first.token_ids.shape[1], second.token_ids.shape[1])

    def stack(name: str) -> Tensor:
        parts = [getattr(rollout, name) for rollout in (first, second)]  # (B, T) each
        return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])

    return replace(
        first,
        prompts=first.prompts + second.prompts,
        completions=first.completions + second.completions,
        token_ids=stack("token_ids"),
        mask=stack("mask"),
        rollout_logprobs=stack("rollout_logprobs"),
        rewards=torch.cat([first.rewards, second.rewards]),
        correct=torch.cat([first.correct, second.correct]),
        judged=torch.cat([first.judged, second.judged]),
        parts={name: torch.cat([part, second.parts[name]]) for name, part in first.parts.items()},
        unreadable={name: torch.cat([part, second.unreadable[name]]) for name, part in first.unreadable.items()},
        statuses=first.statuses + second.statuses,
        repeats=first.repeats + second.repeats,
        versions=None if first.versions is None else stack("versions"),
        stale_cache=None if first.stale_cache is None else stack("stale_cache"),
        reference_rewards=None
        if first.reference_rewards is None or second.reference_rewards is None
        else torch.cat([first.reference_rewards, second.reference_rewards]),
    )


def take(rollout: Rollout, p: int) -> Rollout:
    """Return a rollout of one group alone, with copies of its tensors: a view would be sent with its whole tensor."""
    rows, reference = slice(p * rollout.group_size, (p + 1) * rollout.group_size), rollout.reference_rewards
    return replace(
        rollout,
        prompts=[rollout.prompts[p]],
        completions=[rollout.completions[p]],
        token_ids=rollout.token_ids[rows].clone(),
        mask=rollout.mask[rows].clone(),
        rollout_logprobs=rollout.rollout_logprobs[rows].clone(),
        rewards=rollout.rewards[p, None].clone(),
        correct=rollout.correct[p, None].clone(),
        judged=rollout.judged[p, None].clone(),
        parts={name: part[p, None].clone() for name, part in rollout.parts.items()},
        unreadable={name: part[p, None].clone() for name, part in rollout.unreadable.items()},
        statuses=[rollout.statuses[p]],
        repeats=rollout.repeats[p : p + 1],
        versions=None if rollout.versions is None else rollout.versions[rows].clone(),
        stale_cache=None if rollout.stale_cache is None else rollout.stale_cache[rows].clone(),
        reference_rewards=None if reference is None else reference[p, None].clone(),
        kept=None,
    )
