"""Redistributes groups over the ranks, so that all have as many tokens to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from lit_rlvr.distributed.collectives import gather_objects, rank, world_size
from lit_rlvr.media import Pixels
from lit_rlvr.rollout.assemble import join, take_group
from lit_rlvr.rollout.summaries import Summaries
from lit_rlvr.types import Rollout

GroupPlace = tuple[int, int]
"""A process and the index of a group on it."""


def balance(
    rollout: Rollout,
    summaries: Summaries,
    minibatches: int,
    pinned_groups: int,
    cut: Callable[[Sequence[Any]], Pixels] | None = None,
) -> Rollout:
    """Redistribute groups across ranks by token count; return this rank's.

    Collective: call it on every rank.

    Args:
        rollout: this rank's groups.
        summaries: what all ranks know of their groups.
        minibatches: `updates_per_rollout`.
        pinned_groups: number of the first process's first groups that stay there.
        cut: makes the patches of images again, which are many times larger and therefore not sent.
    """
    if world_size() == 1:
        return rollout
    places = even_out(summaries, minibatches, pinned_groups)[rank()]
    light = take_group if cut is None else lambda rollout, p: without_patches(take_group(rollout, p))
    stay = {p for r, p in places if r == rank()}
    leaving = {}
    for p in range(len(rollout.prompts)):
        if p not in stay:
            leaving[p] = light(rollout, p)
    sent = gather_objects(leaving)
    arrived = []
    kept = {}
    for p, (r, q) in enumerate(places):
        if r == rank():
            arrived.append(take_group(rollout, q))
        elif cut is None:
            arrived.append(sent[r][q])
        else:
            arrived.append(_with_pixels(sent[r][q], lambda pixels: cut(pixels.images)))
        number = summaries[r][q].number
        if number is not None:
            kept[p] = number
    return replace(reduce(join, arrived), kept=None if rollout.kept is None else kept)


def without_patches(group: Rollout) -> Rollout:
    """Return a group whose images are only pictures."""
    return _with_pixels(group, lambda pixels: replace(pixels, inputs=()))


def _with_pixels(group: Rollout, change: Callable[[Pixels], Pixels]) -> Rollout:
    def changed(part: Any) -> Any:
        if part.pixels is None:
            return part
        return replace(part, pixels=change(part.pixels))

    completions = []
    for row in group.completions:
        completions.append([changed(completion) for completion in row])
    prompts = [changed(prompt) for prompt in group.prompts]
    return replace(group, prompts=prompts, completions=completions)


def even_out(summaries: Summaries, minibatches: int, pinned_groups: int) -> list[list[GroupPlace]]:
    """Swap groups between the fullest and the emptiest process, one minibatch after the other, while that evens them.

    A group is swapped for one of the same minibatch, or for one that is not trained on.

    Args:
        summaries: what all ranks know of their groups.
        minibatches: as for `balance`.
        pinned_groups: as for `balance`.

    Returns:
        For each process, the place that each of its groups comes from.
    """
    places = []
    for r, rank_groups in enumerate(summaries):
        places.append([(r, p) for p in range(len(rank_groups))])

    def tokens_of(r: int, minibatch: int | None) -> dict[int, int]:
        """Return the tokens of process r's groups in a minibatch, or of those that are not trained on, by place."""
        tokens = {}
        for p, (origin, place) in enumerate(places[r]):
            group = summaries[origin][place]
            own_minibatch = None
            if group.number is not None:
                own_minibatch = group.number % minibatches
            if own_minibatch == minibatch:
                tokens[p] = group.tokens
        return tokens

    def is_free(r: int, p: int) -> bool:
        """Return True if a group may leave its process: the first one keeps its pinned groups."""
        return r > 0 or p >= pinned_groups

    for minibatch in range(minibatches):
        while True:
            load = []
            for r in range(len(places)):
                load.append(sum(tokens_of(r, minibatch).values()))
            full = load.index(max(load))
            empty = load.index(min(load))
            gap = load[full] - load[empty]
            offered = tokens_of(empty, minibatch) | dict.fromkeys(tokens_of(empty, None), 0)
            swaps = []
            for p, more in tokens_of(full, minibatch).items():
                for q, less in offered.items():
                    if is_free(full, p) and is_free(empty, q):
                        swaps.append((abs(gap - 2 * (more - less)), p, q))
            left, p, q = min(swaps, default=(gap, 0, 0))
            if left >= gap:
                break
            places[full][p], places[empty][q] = places[empty][q], places[full][p]
    return places
