"""Rewards of completions that the reference policy samples, for advantages that compare with them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.advantages import ReferenceCompletions
from lit_rlvr.common.seeds import derive_seed, run_seed
from lit_rlvr.distributed.collectives import all_max, gather_objects
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.rollout.generate import completion_seeds
from lit_rlvr.types import Prompt, Rollout

SampleReference = Callable[[list[Prompt], list[list[int]]], Scores | None]
"""Scores of new completions from the reference, one per seed; None without prompts. Collective."""


class ReferenceRewards:
    """Samples the reference with training's sampling settings and group size, and keeps its pool.

    Args:
        group_size: G.
    """

    def __init__(self, group_size: int) -> None:
        self._size = group_size
        self._pool: dict[str, list[float]] = {}  # prompt id -> K rewards; the same on all ranks
        self._version = -1  # the reference's version that the pool was sampled from

    def rewards(
        self,
        wanted: ReferenceCompletions,
        version: int,
        rollout: Rollout,
        iteration: int,
        device: torch.device,
        sample: SampleReference,
    ) -> Tensor:
        """Return rewards (P, G) of the reference's completions for a rollout's prompts.

        Collective: call it on every rank.

        Args:
            wanted: how many completions of the reference, and when they are sampled.
            version: the reference's.
            rollout: this rank's groups.
            iteration: rollouts trained on so far.
            device: where ranks exchange what they have.
            sample: samples and scores completions of the reference.
        """
        prompts = rollout.prompts
        repeats = rollout.repeats
        if wanted.rollouts == "fresh":
            seeds = completion_seeds(prompts, repeats, self._size, "reference", iteration)
            values = _values(sample(prompts, seeds))
        else:
            self._fill(wanted.pool_size or 2 * self._size, version, prompts, device, sample)
            values = []
            for p, repeat in zip(prompts, repeats, strict=True):
                values.append(self._draw(iteration, p, repeat))
        return torch.tensor(values)

    def _fill(
        self, count: int, version: int, prompts: list[Prompt], device: torch.device, sample: SampleReference
    ) -> None:
        """Sample a pool of `count` rewards for every prompt without one, and share it with all ranks."""
        if self._version != version:
            self._pool = {}
            self._version = version
        missing = {}
        for p in prompts:
            if p.sample.id not in self._pool:
                missing[p.sample.id] = p
        if not all_max(len(missing), device):
            return
        wanted = list(missing.values())
        seeds = completion_seeds(wanted, [0] * len(wanted), count, "reference-pool", self._version)
        values = _values(sample(wanted, seeds))
        for part in gather_objects(dict(zip(missing, values, strict=True))):
            self._pool |= part

    def _draw(self, iteration: int, prompt: Prompt, repeat: int) -> list[float]:
        """Return G rewards from a prompt's pool, drawn without replacement."""
        seed = derive_seed(run_seed(), "reference-draw", iteration, prompt.sample.id, repeat)
        return random.Random(seed).sample(self._pool[prompt.sample.id], self._size)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self._pool, "version": self._version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pool = state["pool"]
        self._version = state["version"]


def _values(scores: Scores | None) -> list[list[float]]:
    """Return rewards as lists; NaN where there is none."""
    if scores is None:
        return []
    return scores.rewards.masked_fill(~scores.has_reward, math.nan).tolist()
