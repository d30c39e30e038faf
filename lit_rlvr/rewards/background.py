"""Rewards that judge in a thread of their own, while completions are still being generated."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from itertools import chain
from queue import SimpleQueue
from types import TracebackType

from lit_rlvr.rewards.base import Reward
from lit_rlvr.rewards.combine import Judgements, Scores, combine, judge, pairs_of
from lit_rlvr.types import Completion, Pair, Sample


class BackgroundScoring:
    """A separate thread that scores groups as they are added, in batches if several are waiting.

    Rewards with worker processes only send and receive here; others run in this thread, not in the main one. It is a
    daemon: a reward that hangs in this process does not keep an interrupted run from ending. What rewards log there is
    forgotten if this object is made within `unlogged`.

    Args:
        rewards: the rewards that score a completion.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._rewards = rewards
        self._pairs: dict[Hashable, list[Pair]] = {}
        self._found: dict[Hashable, Future[Judgements]] = {}
        self._waiting: SimpleQueue[Hashable | None] = SimpleQueue()  # None: no more groups
        self._dropped = False
        run = partial(copy_context().run, self._run)
        self.thread = threading.Thread(target=run, name="lit-rlvr-scoring", daemon=True)
        self.thread.start()

    def __enter__(self) -> BackgroundScoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._dropped = kind is not None
        self._waiting.put(None)

    def close(self) -> None:
        """Score no more."""
        self._dropped = True
        self._waiting.put(None)

    def add(self, key: Hashable, group: list[Completion], sample: Sample, result: Judgements | None = None) -> bool:
        """Score a group, completions of `sample`, once; return False if `key`, which names it, was added before.

        Args:
            key: the group's name.
            group: its completions.
            sample: the sample that they answer.
            result: what another rank's rewards said of it; None = score it here.
        """
        if key in self._pairs:
            return False
        self._pairs[key] = pairs_of(group, sample)
        self._found[key] = Future()
        if result is None:
            self._waiting.put(key)
        else:
            self._found[key].set_result(result)
        return True

    def result(self, key: Hashable) -> Judgements:
        """Return what the rewards say of a group, once they have, but those of whole rollouts."""
        return self._found[key].result()

    def is_scored(self, key: Hashable) -> bool:
        """Return whether `scores` would not wait for this group."""
        return key in self._found and self._found[key].done()

    def scores(self, keys: Sequence[Hashable], width: int) -> Scores:
        """Return the scores of P added groups of `width` completions each, when all are there.

        Rewards of whole rollouts judge now, in the calling thread.

        Raises:
            UserError: see `combine`.
        """
        group_results = [self.result(key) for key in keys]
        all_pairs = []
        for key in keys:
            all_pairs += self._pairs[key]
        rollout_results = judge(self._rewards, all_pairs, whole_rollout=True)
        results = {}
        for reward in self._rewards:
            if reward.whole_rollout:
                results[reward.name] = rollout_results[reward.name]
            else:
                results[reward.name] = list(chain(*(group[reward.name] for group in group_results)))
        return combine(self._rewards, results, [self._pairs[key][0][1] for key in keys], width)

    def forget(self, key: Hashable) -> None:
        """Forget a group, so that its key can be added again."""
        self._pairs.pop(key, None)
        self._found.pop(key, None)

    def _run(self) -> None:
        going = True
        while going and not self._dropped:
            waiting = [self._waiting.get()]
            while not self._waiting.empty():
                waiting.append(self._waiting.get())
            going = None not in waiting
            keys = [key for key in waiting if key is not None]
            if keys:
                self._judge(keys)

    def _judge(self, keys: list[Hashable]) -> None:
        """Score groups as one batch, which keeps every worker busy."""
        parts = [self._pairs[key] for key in keys]
        try:
            results = judge(self._rewards, list(chain.from_iterable(parts)), whole_rollout=False)
        except BaseException as error:  # raised again in the thread that waits for the scores
            for key in keys:
                self._found[key].set_exception(error)
            return
        start = 0
        for key, pairs in zip(keys, parts, strict=True):
            end = start + len(pairs)
            results_of_key = {}
            for name, column in results.items():
                results_of_key[name] = column[start:end]
            self._found[key].set_result(results_of_key)
            start = end
