"""Summaries of groups that all ranks share: which groups have a signal, and how many tokens they train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from lit_rlvr.advantages.base import is_mixed
from lit_rlvr.distributed.collectives import gather_objects
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.types import Rollout


def mixed_groups(scored: Scores | Rollout, by: str = "reward") -> list[int]:
    """Return the indices of mixed groups, whose completions differ in their rewards: the others have no signal.

    Args:
        by: `reward`, the weighted sum of all rewards; `correct`; or the name of one reward.
    """
    if by == "correct":
        values = scored.correct
        known = scored.has_correct
    else:
        if by == "reward":
            values = scored.rewards
        else:
            values = scored.parts[by]
        known = scored.has_reward & ~values.isnan()
    groups: list[int] = is_mixed(values, known).flatten().nonzero().flatten().tolist()
    return groups


def trainable_groups(module: RLVRModule, rollout: Rollout) -> list[bool]:
    """Return for each group whether its mask and rewards allow a gradient; there are no advantages yet."""
    allowed = rollout.mask.any(1).reshape(rollout.rewards.shape).any(1)  # (P,)
    # A term in the rewards makes equal rewards differ.
    if module.advantage.zero_for_equal_rewards and not module.trains_all_rows and not module.terms:
        allowed &= is_mixed(rollout.rewards, rollout.has_reward).flatten()
    return [bool(value) for value in allowed]


class GroupSummary(NamedTuple):
    """The summary of a scored group that all ranks share.

    Args:
        sample_id: of its prompt.
        tokens: the input tokens that training will run; 0 = it has no gradient.
        is_mixed: whether it has a signal (`mixed_groups`).
        number: its position in its rank's rollout; with dynamic sampling, from `number_mixed` on, its place among all
            ranks' groups that are trained on, or None if it is not.
        correct, counted: numbers of its correct completions, and of those that count in accuracies.
    """

    sample_id: str
    tokens: int
    is_mixed: bool
    number: int | None
    correct: int = 0
    counted: int = 0


Summaries = list[list[GroupSummary]]
"""The groups of each rank, in the order of its rollout."""


def gather_summaries(rollout: Rollout, runs: Sequence[bool], by: str = "reward") -> Summaries:
    """Tell all ranks of the groups of a sampling round; return those of every rank.

    Collective: call it on every rank.

    Args:
        rollout: this rank's groups.
        runs: for each of this rank's groups, whether training will run it (`trainable_groups`).
        by: as for `mixed_groups`.
    """
    mixed = {*mixed_groups(rollout, by)}
    correct = rollout.known_correct.sum(1).tolist()
    counted = rollout.in_accuracy.sum(1).tolist()
    own_summaries = []
    for p, prompt in enumerate(rollout.prompts):
        own_summaries.append(
            GroupSummary(
                prompt.sample.id, group_tokens(rollout, p) * runs[p], p in mixed, p, int(correct[p]), counted[p]
            )
        )
    return gather_objects(own_summaries)


def count_successes(summaries: Summaries) -> dict[str, tuple[int, int]]:
    """Return the correct completions of each prompt on all ranks, and those that count in accuracies."""
    counts: dict[str, tuple[int, int]] = {}
    for group in chain.from_iterable(summaries):
        correct, counted = counts.get(group.sample_id, (0, 0))
        counts[group.sample_id] = correct + group.correct, counted + group.counted
    return counts


def count_repeats(sample_ids: Iterable[str]) -> list[int]:
    """Return how often each sample occurs before its place."""
    occurrences: Counter[str] = Counter()
    repeats = []
    for sample_id in sample_ids:
        repeats.append(occurrences[sample_id])
        occurrences[sample_id] += 1
    return repeats


def count_mixed(summaries: Summaries) -> int:
    """Return the number of mixed groups on all ranks."""
    return sum(group.is_mixed for rank_groups in summaries for group in rank_groups)


def number_mixed(summaries: Summaries, prompts_per_rank: int, limit: int) -> Summaries:
    """Number the mixed groups in the order of the prompt stream; train on the first `limit` of them, and no others.

    The numbers do not depend on the number of ranks.

    Args:
        summaries: what all ranks know of their groups.
        prompts_per_rank: prompts of each rank in one sampling round.
        limit: how many groups to keep, over all ranks.
    """
    places = []
    for r, rank_groups in enumerate(summaries):
        for p, group in enumerate(rank_groups):
            if group.is_mixed:
                places.append((p // prompts_per_rank, r, p))  # by sampling round, then by rank
    numbers = {(r, p): number for number, (_, r, p) in enumerate(sorted(places)[:limit])}
    numbered = []
    for r, rank_groups in enumerate(summaries):
        numbered_groups = []
        for p, group in enumerate(rank_groups):
            numbered_groups.append(group._replace(number=numbers.get((r, p))))
        numbered.append(numbered_groups)
    return numbered


def group_tokens(rollout: Rollout, p: int) -> int:
    """Return the input tokens of a group: its prompt once, and its completions."""
    return len(rollout.prompts[p].token_ids) + sum(len(c.token_ids) for c in rollout.completions[p])
