"""Generates and scores completions: groups are scored while others are still being generated."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lit_rlvr.errors import first_line
from lit_rlvr.rewards import Reward
from lit_rlvr.rewards.combine import BackgroundScoring, Scores
from lit_rlvr.rollout.engines.base import RolloutEngine, Turns
from lit_rlvr.rollout.engines.synced import SyncedEngine
from lit_rlvr.seeds import derive_seed, run_seed
from lit_rlvr.terminal import progress
from lit_rlvr.types import Completion, Prompt, Sampling


def sample_and_score(
    engine: RolloutEngine | SyncedEngine,
    rewards: Sequence[Reward],
    prompts: list[Prompt],
    sampling: Sampling,
    seeds: list[list[int]],
    ready: list[list[Completion]] | None = None,
    turns: Turns | None = None,
) -> tuple[list[list[Completion]], Scores, dict[str, float]]:
    """Generate one completion per seed and score it.

    Args:
        seeds: P lists of G.
        ready: the completions, if they were generated before.
        turns: how completions go on when they stop; None = they are over.

    Returns:
        P lists of G completions, their scores, and the seconds spent generating ("generate") and afterwards still
        scoring ("score").
    """
    started = time.perf_counter()
    with BackgroundScoring(rewards) as scoring:

        def done(p: int, group: list[Completion]) -> None:
            if scoring.add(p, group, prompts[p].sample):
                progress.advance(len(group), sum(completion.length for completion in group))

        progress.begin("generating", total=sum(map(len, seeds)))
        completions = ready or engine.generate(prompts, sampling, seeds, done, turns)
        generated = time.perf_counter()
        for p, group in enumerate(completions):  # an engine need not report groups before the end
            done(p, group)
        progress.begin("scoring")
        scores = scoring.scores(len(seeds[0]))
    return completions, scores, {"generate": generated - started, "score": time.perf_counter() - generated}


def completion_seeds(prompts: list[Prompt], repeats: list[int], count: int, *use: int | str) -> list[list[int]]:
    """Return each completion's own seed (P lists of `count`), from (run seed, use, prompt id, sample index).

    Validation uses the same seeds every time.

    Args:
        repeats: how often each prompt occurred earlier in this iteration; its sample indices continue from there.
        use: what the completions are for, such as "rollout" and the iteration.
    """
    return [
        [derive_seed(run_seed(), *use, prompt.sample.id, repeat * count + g) for g in range(count)]
        for prompt, repeat in zip(prompts, repeats, strict=True)
    ]


_log = logging.getLogger("lit_rlvr")


class Prefetch:
    """One generation in a background thread. Checkpoints store its result, because its weights are gone on resuming.

    If the engine crashes there is no result, and the next iteration generates with its current weights.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lit-rlvr-ahead")
        self._ids: list[str] = []
        self._result: Future[list[list[Completion]]] | list[list[Completion]] | None = None

    def start(
        self, engine: SyncedEngine, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> None:
        """Start generating; until `wait`, nothing else may use the engine."""
        self._ids = [prompt.sample.id for prompt in prompts]
        self._result = self._thread.submit(engine.generate_once, prompts, sampling, seeds)

    def wait(self) -> None:
        """Block until the engine is free."""
        if not isinstance(self._result, Future):
            return
        try:
            self._result = self._result.result()
        except Exception as error:
            self._result = None
            _log.warning("the engine crashed on the rollout ahead: %s; generating it again", first_line(error))

    def take(self, prompts: Sequence[Prompt]) -> list[list[Completion]] | None:
        """Return and forget the completions, if they are of these prompts; else None."""
        self.wait()
        found, self._result = self._result, None
        same = self._ids == [prompt.sample.id for prompt in prompts]
        return found if same and not isinstance(found, Future) else None

    def state_dict(self) -> dict[str, Any]:
        self.wait()
        assert not isinstance(self._result, Future)
        groups = [[vars(completion) for completion in group] for group in self._result or []]
        return {"ids": self._ids, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ids = state["ids"]
        self._result = [[Completion(**values) for values in group] for group in state["groups"]] or None
