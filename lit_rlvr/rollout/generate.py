"""Generates and scores completions, the reference's too: groups are scored while others are still being generated."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_max, gather_objects
from lit_rlvr.errors import first_line
from lit_rlvr.rewards import Reward
from lit_rlvr.rewards.combine import BackgroundScoring, Scores
from lit_rlvr.rollout.assemble import impute
from lit_rlvr.rollout.engines.base import RolloutEngine, Turns
from lit_rlvr.rollout.engines.synced import SyncedEngine
from lit_rlvr.seeds import derive_seed, run_seed
from lit_rlvr.terminal import progress
from lit_rlvr.training.module import RLVRModule
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
        """Start generating, without restarts after a crash; until `wait`, nothing else may use the engine."""
        self._ids = [prompt.sample.id for prompt in prompts]
        self._result = self._thread.submit(engine.engine.generate, prompts, sampling, seeds)

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


SampleReference = Callable[[list[Prompt], list[list[int]]], Scores | None]
"""Scores of new completions from the reference, one per seed; None without prompts. Collective."""


class ReferenceRewards:
    """Samples the reference with training's sampling settings and group size (AAPO, section 4), in one of two ways.

    `fresh`: G new completions per prompt and visit. `pool`: the first visit to a prompt samples K completions and keeps
    their rewards, and every visit draws G of them without replacement, which has the same distribution as long as the
    reference does not change.

    Args:
        group_size: G.
    """

    def __init__(self, group_size: int) -> None:
        self._size = group_size
        self._pool: dict[str, list[float]] = {}  # prompt id -> K rewards; the same on all ranks
        self._version = -1  # the reference's version that the pool was sampled from

    def rewards(self, module: RLVRModule, prompts: list[Prompt], repeats: list[int], sample: SampleReference) -> Tensor:
        """Return rewards (P, G) of reference completions. Collective: call it on every rank.

        Args:
            repeats: how often each prompt occurred earlier in this iteration.
        """
        if module.reference_rollouts == "fresh":
            seeds = completion_seeds(prompts, repeats, self._size, "reference", module.iteration)
            found = _values(sample(prompts, seeds))
        else:
            self._fill(module, prompts, sample)
            found = [self._draw(module.iteration, p, repeat) for p, repeat in zip(prompts, repeats, strict=True)]
        return torch.tensor(found)

    def _fill(self, module: RLVRModule, prompts: list[Prompt], sample: SampleReference) -> None:
        """Sample a pool for every prompt without one, and share it with all ranks."""
        if self._version != module.reference.version:
            self._pool, self._version = {}, module.reference.version
        missing = {p.sample.id: p for p in prompts if p.sample.id not in self._pool}
        if not all_max(len(missing), module.device):
            return
        count = module.reference_pool_size or 2 * self._size
        wanted = list(missing.values())
        seeds = completion_seeds(wanted, [0] * len(wanted), count, "reference-pool", self._version)
        found = _values(sample(wanted, seeds))
        for part in gather_objects(dict(zip(missing, found, strict=True))):
            self._pool |= part

    def _draw(self, iteration: int, prompt: Prompt, repeat: int) -> list[float]:
        """Return G rewards from a prompt's pool, drawn without replacement."""
        seed = derive_seed(run_seed(), "reference-draw", iteration, prompt.sample.id, repeat)
        return random.Random(seed).sample(self._pool[prompt.sample.id], self._size)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self._pool, "version": self._version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pool, self._version = state["pool"], state["version"]


def _values(scores: Scores | None) -> list[list[float]]:
    """Return rewards as lists; a failed check gets the mean of the rest of its group."""
    return [] if scores is None else impute(scores.rewards, scores.masked).tolist()
