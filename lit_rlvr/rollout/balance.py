"""Exchanges groups between processes, so that all have about as many tokens to train on and none waits for the slowest.

Which process trains on a group changes no loss and no gradient: normalisers are counted over all processes. Two groups
change places, so each process keeps its number of groups.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from lit_rlvr.distributed.collectives import gather_objects, rank, world_size
from lit_rlvr.rollout.assemble import join
from lit_rlvr.types import Rollout

Place = tuple[int, int]
"""A process and the index of a group on it."""


def balance(rollout: Rollout, minibatches: int, all_rows: bool, fixed: int) -> Rollout:
    """This process's groups after the exchange. Collective: call it on every rank.

    Args:
        minibatches: `updates_per_rollout`.
        all_rows: groups without a signal are run too.
        fixed: how many of the first process's first groups stay there.
    """
    if world_size() == 1:
        return rollout
    groups, kept = range(len(rollout.prompts)), rollout.kept
    numbers: list[int | None] = [p if kept is None else kept.get(p) for p in groups]
    parts = [None if number is None else number % minibatches for number in numbers]
    places = even_out(
        gather_objects([tokens_to_train(rollout, p, all_rows) for p in groups]), gather_objects(parts), fixed
    )
    stay = {origin for origin in places[rank()] if origin[0] == rank()}
    sent = gather_objects({p: (take(rollout, p), numbers[p]) for p in groups if (rank(), p) not in stay})
    mine = [(take(rollout, p), numbers[p]) if origin == rank() else sent[origin][p] for origin, p in places[rank()]]
    moved = {p: number for p, (_, number) in enumerate(mine) if number is not None}
    return replace(reduce(join, (group for group, _ in mine)), kept=None if kept is None else moved)


def tokens_to_train(rollout: Rollout, p: int, all_rows: bool) -> int:
    """Input tokens of a group; 0 if its equal rewards give it no gradient, unless all rows are run."""
    if not all_rows and bool((rollout.rewards[p] == rollout.rewards[p, 0]).all()):
        return 0
    return len(rollout.prompts[p].token_ids) + sum(len(c.token_ids) for c in rollout.completions[p])


def take(rollout: Rollout, p: int) -> Rollout:
    """A rollout of one group alone; its tensors are copies, because a view would be sent with all it is a view of."""
    rows, reference = slice(p * rollout.group_size, (p + 1) * rollout.group_size), rollout.reference_rewards
    return replace(
        rollout,
        prompts=[rollout.prompts[p]],
        completions=[rollout.completions[p]],
        token_ids=rollout.token_ids[rows].clone(),
        mask=rollout.mask[rows].clone(),
        engine_logprobs=rollout.engine_logprobs[rows].clone(),
        rewards=rollout.rewards[p, None].clone(),
        correct=rollout.correct[p, None].clone(),
        judged=rollout.judged[p, None].clone(),
        parts={name: part[p, None].clone() for name, part in rollout.parts.items()},
        statuses=[rollout.statuses[p]],
        reference_rewards=None if reference is None else reference[p, None].clone(),
        kept=None,
    )


def even_out(tokens: list[list[int]], parts: list[list[int | None]], fixed: int) -> list[list[Place]]:
    """Swap groups between the fullest and the emptiest process, one minibatch after the other, while that evens them.

    A group is swapped for one of the same minibatch, or for one that is not trained on.

    Args:
        tokens: of each group, by process. parts: the minibatch of each group; None = not trained on.
        fixed: as for `balance`.

    Returns:
        For each process, the place that each of its groups comes from.
    """
    places = [[(r, p) for p in range(len(there))] for r, there in enumerate(tokens)]

    def groups(r: int, *wanted: int | None) -> dict[int, int]:
        """Process r's groups in these minibatches -> their tokens."""
        return {p: tokens[o][q] for p, (o, q) in enumerate(places[r]) if parts[o][q] in wanted}

    for part in sorted({k for there in parts for k in there if k is not None}):
        while True:
            load = [sum(groups(r, part).values()) for r in range(len(places))]
            full, empty = load.index(max(load)), load.index(min(load))
            apart = load[full] - load[empty]
            idle = dict.fromkeys(groups(empty, None), 0)
            swaps = [
                (abs(apart - 2 * (more - less)), p, q)
                for p, more in groups(full, part).items()
                for q, less in (groups(empty, part) | idle).items()
                if (full or p >= fixed) and (empty or q >= fixed)
            ]
            left, p, q = min(swaps, default=(apart, 0, 0))
            if left >= apart:
                break
            places[full][p], places[empty][q] = places[empty][q], places[full][p]
    return places
