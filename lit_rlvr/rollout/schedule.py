"""Which groups of a queue an iteration trains on: the oldest first, and none too late."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import NamedTuple


class GroupState(NamedTuple):
    """What all ranks know of a group; sorted, those come first that are trained on first.

    Args:
        left: the iterations after this one that can still train on it; infinite before its sampling begins.
        number: its place in the stream of prompts.
        rank: where it is.
        finished: whether all its completions are sampled.
        mixed: whether it is scored, and has a signal.
        has_no_signal: it is scored and not mixed.
    """

    left: float
    number: int
    rank: int
    finished: bool
    mixed: bool = False
    has_no_signal: bool = False


def choose(
    groups: Sequence[GroupState], prompts: int, wanted: int = 0, most: int = 0, in_order: bool = False, ranks: int = 1
) -> list[GroupState] | None:
    """Return the groups that an iteration trains on, those with the oldest weights first; None = it has to wait.

    It takes as many as it needs, and more if those that it leaves would be too old before later iterations come to
    them. With two prompts an iteration, and finished groups that can wait for 0, 0, 1 and 1 iterations (`left`), it
    takes the first two, and the next one the others. If they can wait for 0, 0 and 0, it takes all three. A group that
    still runs and is older than the next finished one is waited for.

    Args:
        groups: of all ranks.
        prompts: how many the iteration needs.
        wanted: how many of them must be mixed, above 0 with dynamic sampling.
        most: after how many it takes fewer.
        in_order: take groups in the order of the prompts, so that no thread's speed changes the result.
        ranks: they get as many groups each.
    """
    if in_order:
        ready = [*takewhile(lambda group: group.finished, sorted(groups, key=lambda group: group.number))]
    else:
        ready = sorted(group for group in groups if group.finished)
    oldest = min((group for group in groups if not group.finished), default=None)
    ahead = sum(oldest is None or group < oldest for group in ready)
    mixed = 0
    for count, group in enumerate(ready, 1):
        mixed += group.mixed
        if count < prompts or count % ranks or (mixed < wanted and count < most):
            continue
        rest = {*groups} - {*ready[:count]}
        # An iteration with fewer mixed groups than prompts leaves more to later ones, which take more if they must.
        if in_order or in_time(rest, len(groups) if wanted and mixed < prompts else prompts):
            return ready[:count]
        if count >= ahead:
            return None
    return None


def in_time(groups: Collection[GroupState], prompts: int) -> bool:
    """Return whether the iterations after this one can train on all these groups before they are too old.

    Args:
        groups: those that are left; nobody trains on those without a signal.
        prompts: how many an iteration trains on at least.
    """
    lefts = sorted(group.left for group in groups if math.isfinite(group.left) and not group.has_no_signal)
    for place, left in enumerate(lefts):
        if place >= left * prompts:
            return False
    return True


def even_places(ranks: list[int], world: int) -> list[int]:
    """Return which rank each group goes to so that all get as many, up to one; as few as possible move.

    Args:
        ranks: where each group is.
        world: number of ranks.
    """
    room = []
    for r in range(world):
        room.append(len(ranks) * (r + 1) // world - len(ranks) * r // world)
    places: list[int | None] = []
    for r in ranks:
        stays = room[r] > 0
        room[r] -= stays
        if stays:
            places.append(r)
        else:
            places.append(None)
    free = iter([r for r in range(world) for _ in range(room[r])])
    return [next(free) if place is None else place for place in places]
