"""Rewards of the reference model on the same prompts, for AAPO's margin."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_rlvr.distributed import all_max, gather_objects
from lit_rlvr.rollout.assemble import impute
from lit_rlvr.seeds import derive_seed, run_seed
from lit_rlvr.types import Prompt

if TYPE_CHECKING:
    from lit_rlvr.algorithms.base import RLVRModule
    from lit_rlvr.rollout.callback import RolloutCallback


class ReferenceRollouts:
    """Samples the reference with the training's sampling and group size (AAPO, section 4), in one of two ways.

    `fresh`: G new completions per prompt and visit; the engine takes the reference's weights for them and gets the
    trained ones back with the next iteration's sync. `pool`: the first visit of a prompt samples K completions and
    keeps their rewards, and every visit draws G of them without replacement, which has the same distribution as
    long as the reference is frozen.
    """

    def __init__(self, callback: RolloutCallback) -> None:
        self._callback = callback
        self._pool: dict[str, list[float]] = {}  # prompt id -> K rewards; the same on all ranks
        self._version = -1  # the reference's version that the pool was sampled from

    def rewards(
        self, trainer: Trainer, module: RLVRModule, prompts: list[Prompt], repeats: list[int]
    ) -> tuple[Tensor, dict[str, float]]:
        """Rewards s (P, G) of reference completions, and the seconds they took.

        Args:
            repeats: how often each prompt stood in this iteration before.
        """
        started = time.perf_counter()
        size = self._callback.group_size
        if module.reference_rollouts == "fresh":
            seeds = self._callback.seeds(prompts, repeats, size, "reference", module.iteration)
            found = self._sample(trainer, module, prompts, seeds)
        else:
            self._fill(trainer, module, prompts)
            found = [self._draw(module, p, size, repeat) for p, repeat in zip(prompts, repeats, strict=True)]
        return torch.tensor(found), {"reference": time.perf_counter() - started}

    def _sample(
        self, trainer: Trainer, module: RLVRModule, prompts: list[Prompt], seeds: list[list[int]]
    ) -> list[list[float]]:
        """Rewards of new completions of the reference, one per seed; a failed check counts as its group's mean.

        All ranks take part, with or without prompts.
        """
        completions = self._callback.generate_with(module.reference, prompts, seeds)
        if not prompts:
            return []
        scores = self._callback.score(trainer, prompts, completions)
        return impute(scores.rewards, scores.failed).tolist()

    def _fill(self, trainer: Trainer, module: RLVRModule, prompts: list[Prompt]) -> None:
        """Sample the pool of every prompt that has none yet; ranks share theirs."""
        if self._version != module.reference_version:
            self._pool, self._version = {}, module.reference_version
        missing = {p.sample.id: p for p in prompts if p.sample.id not in self._pool}
        if not all_max(len(missing), module.device):
            return
        count = module.reference_pool_size or 2 * self._callback.group_size
        wanted = list(missing.values())
        seeds = self._callback.seeds(wanted, [0] * len(wanted), count, "reference-pool", self._version)
        found = self._sample(trainer, module, wanted, seeds)
        for part in gather_objects(dict(zip(missing, found, strict=True))):
            self._pool |= part

    def _draw(self, module: RLVRModule, prompt: Prompt, size: int, repeat: int) -> list[float]:
        """`size` different rewards of a prompt's pool."""
        seed = derive_seed(run_seed(), "reference-draw", module.iteration, prompt.sample.id, repeat)
        return random.Random(seed).sample(self._pool[prompt.sample.id], size)

    def state_dict(self) -> dict[str, Any]:
        return {"pool": self._pool, "version": self._version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pool, self._version = state["pool"], state["version"]
