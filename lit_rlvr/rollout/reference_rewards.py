"""Rewards of the reference model on the same prompts, for AAPO's margin."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_rlvr.distributed.collectives import all_max, gather_objects
from lit_rlvr.rewards.combine import Scores
from lit_rlvr.rollout.assemble import impute
from lit_rlvr.rollout.generate import completion_seeds
from lit_rlvr.seeds import derive_seed, run_seed
from lit_rlvr.training.module import RLVRModule
from lit_rlvr.types import Prompt

SampleReference = Callable[[list[Prompt], list[list[int]]], Scores | None]
"""Scores of new completions of the reference, one per seed; None without prompts. All ranks call it together."""


class ReferenceRewards:
    """Samples the reference with the training's sampling and group size (AAPO, section 4), in one of two ways.

    `fresh`: G new completions per prompt and visit. `pool`: the first visit of a prompt samples K completions and keeps
    their rewards, and every visit draws G of them without replacement, which has the same distribution as long as the
    reference is frozen.

    Args:
        group_size: G.
    """

    def __init__(self, group_size: int) -> None:
        self._size = group_size
        self._pool: dict[str, list[float]] = {}  # prompt id -> K rewards; the same on all ranks
        self._version = -1  # the reference's version that the pool was sampled from

    def rewards(self, module: RLVRModule, prompts: list[Prompt], repeats: list[int], sample: SampleReference) -> Tensor:
        """Rewards s (P, G) of reference completions.

        Args:
            repeats: how often each prompt stood in this iteration before.
        """
        if module.reference_rollouts == "fresh":
            seeds = completion_seeds(prompts, repeats, self._size, "reference", module.iteration)
            found = _values(sample(prompts, seeds))
        else:
            self._fill(module, prompts, sample)
            found = [self._draw(module.iteration, p, repeat) for p, repeat in zip(prompts, repeats, strict=True)]
        return torch.tensor(found)

    def _fill(self, module: RLVRModule, prompts: list[Prompt], sample: SampleReference) -> None:
        """Sample the pool of every prompt that has none yet; ranks share theirs."""
        if self._version != module.reference_version:
            self._pool, self._version = {}, module.reference_version
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
        """G different rewards of a prompt's pool."""
        seed = derive_seed(run_seed(), "reference-draw", iteration, prompt.sample.id, repeat)
        return random.Random(seed).sample(self._pool[prompt.sample.id], self._size)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self._pool, "version": self._version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pool, self._version = state["pool"], state["version"]


def _values(scores: Scores | None) -> list[list[float]]:
    """Rewards as lists; a failed check counts as its group's mean."""
    return [] if scores is None else impute(scores.rewards, scores.failed).tolist()
