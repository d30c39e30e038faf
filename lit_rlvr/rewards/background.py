"""Scores groups while others are still being generated."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType

from lit_rlvr.rewards.base import Reward
from lit_rlvr.rewards.combine import Judgements, Scores, combine, judge
from lit_rlvr.types import Completion, Pair, Sample


class BackgroundScoring:
    """Scores groups in a separate thread as they are added, in batches if several are waiting.

    The checks run in worker processes, so the thread only sends and receives. It is a daemon: a reward that hangs in
    this process does not keep an interrupted run from ending.

    Args:
        rewards: the rewards that score a completion.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._rewards = rewards
        self._added: set[int] = set()
        self._waiting: SimpleQueue[tuple[int, list[Pair]] | None] = SimpleQueue()  # None: no more groups
        self._dropped = False
        self._found: dict[int, Judgements] = {}
        self._end: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="lit-rlvr-scoring", daemon=True)

    def __enter__(self) -> BackgroundScoring:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._dropped = kind is not None
        self._waiting.put(None)

    def add(self, number: int, group: list[Completion], sample: Sample) -> bool:
        """Score group `number`, completions of `sample`; False if it was added before: it is scored only once."""
        if number in self._added:
            return False
        self._added.add(number)
        self._waiting.put((number, [(completion, sample) for completion in group]))
        return True

    def scores(self, width: int) -> Scores:
        """Wait for the added groups, numbered 0 to P - 1, of `width` completions each. No group can be added later.

        Raises:
            UserError: see `combine`.
        """
        self._waiting.put(None)
        self._end.result()
        names = [reward.name for reward in self._rewards]
        order = sorted(self._found)
        results = {name: [result for number in order for result in self._found[number][name]] for name in names}
        return combine(self._rewards, results, len(order), width)

    def _run(self) -> None:
        try:
            while not self._dropped and self._score_waiting():
                pass
        except BaseException as error:  # re-raised in the thread that waits for the scores
            self._end.set_exception(error)
        else:
            self._end.set_result(None)

    def _score_waiting(self) -> bool:
        """Score all waiting groups as one batch, which keeps every worker busy; False after the last."""
        waiting = [self._waiting.get()]
        while not self._waiting.empty():
            waiting.append(self._waiting.get())
        taken = [group for group in waiting if group is not None]
        if taken:
            self._judge(taken)
        return None not in waiting

    def _judge(self, groups: list[tuple[int, list[Pair]]]) -> None:
        results = judge(self._rewards, [pair for _, pairs in groups for pair in pairs])
        start = 0
        for number, pairs in groups:
            self._found[number] = {name: said[start : start + len(pairs)] for name, said in results.items()}
            start += len(pairs)
