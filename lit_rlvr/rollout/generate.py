"""Generates and scores completions: groups are scored while others are still being generated."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lit_rlvr.doing import DOING
from lit_rlvr.rewards import Reward
from lit_rlvr.rewards.background import BackgroundScoring
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.rollout.engine import Generates
from lit_rlvr.rollout.turns import Turns
from lit_rlvr.seeds import derive_seed, run_seed
from lit_rlvr.types import Completion, Prompt, Sampling


def sample_and_score(
    engine: Generates,
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
                DOING.advance(len(group), sum(completion.length for completion in group))

        DOING.begin("generating", total=sum(map(len, seeds)))
        completions = ready or engine.generate(prompts, sampling, seeds, done, turns)
        generated = time.perf_counter()
        for p, group in enumerate(completions):  # an engine need not report groups before the end
            done(p, group)
        DOING.begin("scoring")
        scores = scoring.scores(len(seeds[0]))
    return completions, scores, {"generate": generated - started, "score": time.perf_counter() - generated}


def completion_seeds(prompts: list[Prompt], repeats: list[int], count: int, *use: int | str) -> list[list[int]]:
    """Each completion's own seed (P lists of `count`), from (run seed, use, prompt id, sample index).

    Validation uses the same seeds every time.

    Args:
        repeats: how often each prompt occurred earlier in this iteration; its sample indices continue from there.
        use: what the completions are for, such as "rollout" and the iteration.
    """
    return [
        [derive_seed(run_seed(), *use, prompt.sample.id, repeat * count + g) for g in range(count)]
        for prompt, repeat in zip(prompts, repeats, strict=True)
    ]
