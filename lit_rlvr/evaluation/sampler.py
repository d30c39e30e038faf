"""A model, an engine and rewards without a trainer: what evaluates a model and filters data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from lit_rlvr.policy import load_policy
from lit_rlvr.rewards import Reward, shared_pool
from lit_rlvr.rewards.combine import Scores, score_rollout
from lit_rlvr.rollout.engine import EngineContext, RolloutEngine
from lit_rlvr.rollout.probe import check_engine
from lit_rlvr.seeds import derive_seed, run_seed
from lit_rlvr.types import Completion, Prompt, Sampling

Judged = Callable[[Prompt, list[Completion], Scores], None]
Prepare = Callable[[Prompt], Prompt]

SEQUENCES = 2048
"""Completions handed to the engine at once; images are decoded for so many only."""


class Sampler:
    """Samples groups of completions from a model's weights and judges each as soon as it is complete.

    Args:
        folder: model folder or hub id.
        engine: not started yet.
        tokenizer: the model's.
        dtype: what the engine computes in.
        max_tokens: the longest sequence, prompt and completion together.
        max_images: images in one prompt, at most.
        check: a prompt on which the engine's log-probabilities are compared with the model's own, once.
    """

    def __init__(
        self, folder: str, engine: RolloutEngine, tokenizer: Any, dtype: torch.dtype, max_tokens: int, max_images: int,
        check: Prompt,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.policy = load_policy(folder).requires_grad_(False)
        if engine.shares_weights and torch.cuda.is_available():
            self.policy.to("cuda")
        engine.start(
            EngineContext(folder, self.policy, tokenizer, max_tokens, 256, run_seed(), dtype, max_images=max_images)
        )
        engine.follow(self.policy)
        engine.sync(self.policy.named_weights())
        sampling = Sampling(max_tokens=min(16, max_tokens - len(check.token_ids)))
        check_engine(engine, self.policy, check, sampling.with_banned(self.policy.placeholder_ids), run_seed())

    def run(
        self, prompts: Sequence[Prompt], sampling: Sampling, samples: int, rewards: Sequence[Reward], use: str,
        prepare: Prepare, judged: Judged,
    ) -> None:  # fmt: skip
        """Sample and judge.

        Args:
            samples: completions per prompt. Each has a seed of its own, of (run seed, `use`, prompt id, number), so
                that no completion depends on what else is sampled.
            prepare: makes a prompt ready for the engine (images).
            judged: told of each group from a thread of its own, one after the other, in any order.
        """
        sampling = sampling.with_banned(self.policy.placeholder_ids)
        share = max(1, SEQUENCES // samples)
        for first in range(0, len(prompts), share):
            self._run([prepare(p) for p in prompts[first : first + share]], sampling, samples, rewards, use, judged)

    def _run(
        self, prompts: list[Prompt], sampling: Sampling, samples: int, rewards: Sequence[Reward], use: str,
        judged: Judged,
    ) -> None:  # fmt: skip
        seeds = [[derive_seed(run_seed(), use, p.sample.id, g) for g in range(samples)] for p in prompts]
        waiting: dict[int, Future[None]] = {}

        def judge(prompt: Prompt, group: list[Completion]) -> None:
            judged(prompt, group, score_rollout(rewards, [group], [prompt.sample]))

        with ThreadPoolExecutor(1) as thread:

            def done(p: int, group: list[Completion]) -> None:
                waiting[p] = waiting.get(p) or thread.submit(judge, prompts[p], group)

            for p, group in enumerate(self.engine.generate(prompts, sampling, seeds, done)):
                done(p, group)
        for future in waiting.values():
            future.result()

    def close(self) -> None:
        """Give back the engine's memory and the reward workers."""
        self.engine.close()
        shared_pool().close()
